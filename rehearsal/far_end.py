"""The far end of the Kinetics rehearsal: a loopback server in the place of YouTube and of the mirror, for the real rows of the lists.

Five rendered videos are served under every id, each as long as the id needs. What is wrong with an id is drawn by its name and a seed, so that
the outcome of each row of the lists is known before the study starts."""
import gzip, hashlib, io, subprocess, sys, tarfile
from bisect import bisect_left
from pathlib import Path
import numpy as np, pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tests'))
from faults import PAGE, Fault  # noqa: E402
from kinetics_dance.synthetic import dancers, uploads  # noqa: E402
from kinetics_dance.clips.annotations import read_annotations  # noqa: E402
from kinetics_dance.core.base import writing  # noqa: E402
from kinetics_dance.download.cvdf import CLASS_NUMBERS, tar_of  # noqa: E402

LISTS = ROOT.parent/'shared'/'data'/'kinetics'
STEPS = 'windmill', 'spin', 'round', 'wave', 'robot'  # one video each
LENGTHS = 16, 32, 64, 128, 256, 512, 1024, 2048, 6000 # seconds
FPS, SIZE = 4, (96, 72)                              # small, so that 14,000 clips cost minutes

# ---- videos

class Videos:
    "Uploads of (step, seconds): with a key frame each second, one of the steps with sound; made when they are first asked for"
    def __init__(self, folder):
        import imageio_ffmpeg
        self.folder = Path(folder)
        self.ff = [imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-y', '-nostdin', '-stream_loop', '-1', '-i']

    def __getitem__(self, what):
        step, seconds = what
        path = self.folder/f'{step}-{seconds}.mp4'
        if not path.exists(): self._make(path, step, seconds)
        return path

    def _make(self, path, step, seconds):
        with writing(path) as tmp:
            if seconds > LENGTHS[0]: # one piece after the other, nothing encoded again
                self._run(self[step, LENGTHS[0]], '-t', seconds, '-c', 'copy', tmp)
            else:
                k = STEPS.index(step)
                uploads.write_video(tmp.with_suffix('.raw.mp4'), dancers.render_clip(step, 0, k))
                sound = ['-an'] if k else ['-f', 'lavfi', '-i', 'sine=440:sample_rate=16000', '-map', '0:v', '-map', '1:a', '-c:a', 'aac', '-b:a', '16k', '-ac', '1']
                self._run(tmp.with_suffix('.raw.mp4'), *sound, '-t', seconds, '-vf', f'fps={FPS},scale={SIZE[0]}:{SIZE[1]}', '-c:v', 'libx264', '-preset',
                          'slow', '-crf', '30', '-g', FPS, '-bf', '0', '-pix_fmt', 'yuv420p', '-threads', '1', tmp)
                tmp.with_suffix('.raw.mp4').unlink()

    def _run(self, src, *options):
        *options, path = options
        subprocess.run([*self.ff, src, *map(str, options), '-movflags', '+faststart', path], check=True)

    def cut(self, step, seconds):
        "The first seconds of a video, as a file of its own"
        path = self.folder/f'clip-{step}-{seconds}.mp4'
        if not path.exists():
            with writing(path) as tmp: self._run(self[step, LENGTHS[0]], '-t', seconds, '-c', 'copy', tmp)
        return path

def draw(*what):
    "A number in [0, 1) that depends on the words alone"
    return int(hashlib.sha256('|'.join(map(str, what)).encode()).hexdigest()[:12], 16)/16**12

def video_of(videos, youtube_id, seconds):
    "The video that is served under an id that needs so many seconds"
    return videos[STEPS[int(draw('video', youtube_id)*len(STEPS))], LENGTHS[bisect_left(LENGTHS, seconds)]]

# ---- what is wrong with an id

GONE = 1_086 # of the training list: alive in December 2022 were 12,245 of 13,331
# kind: what the server does, and what the table must say in the end (None: the clip is there)
YOUTUBE = dict(
    busy=(Fault(status=503, times=2), None), down=(Fault(status=503), 'http-503'), often=(Fault(status=429, retry_after=1, times=1), None),
    reset=(Fault(reset=20_000, times=3), None), cut=(None, 'truncated'), page=(Fault(html=True), 'not a video'),
    empty=(Fault(body=b''), 'truncated'), slow=(Fault(rate=60_000), None))
MIRROR = dict(empty='truncated', page='not a video', cut='truncated', short='too short')
SHARE = .01

def fates(rows, seed=0):
    "One word an id: `gone`, a kind of fault, or `fine`. Exactly the share of ids that are gone is gone in each list; faults come of the rest"
    out = {}
    for split, ids in rows.groupby('split').youtube_id:
        order = sorted(set(ids), key=lambda i: draw('gone', seed, i))
        n = round(len(order)*GONE/13_331)
        out |= dict.fromkeys(order[:n], 'gone')
        for i in order[n:]:
            k = int(draw('fault', seed, i)/SHARE)
            out[i] = [*YOUTUBE, *(f'tar-{m}' for m in MIRROR)][k] if k < len(YOUTUBE) + len(MIRROR) else 'fine'
    return out

def read_rows(n=0, seed=0, lists=LISTS):
    "The real rows, or those of the first `n` uploads in a drawn order (the same share of each list)"
    rows = pd.concat([read_annotations(lists/f'k700_2020_dancing_{s}.csv') for s in ('train', 'validate')], ignore_index=True)
    if not n: return rows
    rank = rows.youtube_id.map(lambda i: draw('row', seed, i)).groupby([rows.split, rows.label]).rank(method='first')
    total = rows.groupby(['split', 'label']).youtube_id.transform('size')
    return rows[rank <= np.maximum(1 + 2*rows.split.eq('train'), total*n/len(rows)).round()].reset_index(drop=True)

# ---- YouTube's place

def served_uploads(rows, fate, videos, folder):
    "(bodies, plan) of a server: `/<id>.mp4` for every id"
    need = rows.groupby('youtube_id').time_end.max()
    bodies, plan = {}, {}
    for i, seconds in need.items():
        if (kind := fate[i]) == 'gone': continue
        body = video_of(videos, i, seconds)
        if kind == 'cut': # all that is sent ends where the clip would begin, and the length says so
            n = LENGTHS[bisect_left(LENGTHS, seconds)]
            part = Path(folder)/f'cut-{body.stem}-{int(seconds) - 10}.mp4'
            if not part.exists(): part.write_bytes(body.read_bytes()[:int(body.stat().st_size*max(.02, .9*(seconds - 10)/n))])
            body = part
        elif kind in YOUTUBE: plan[f'/{i}.mp4'] = YOUTUBE[kind][0]
        bodies[f'/{i}.mp4'] = body
    return bodies, plan

# ---- the mirror's place

def make_tars(rows, fate, videos, folder):
    "{'/train/k700_train_032.tar.gz': file}: the clips of a class, cut already; what is gone is not in it"
    folder = Path(folder)
    clips = {(s, n): videos.cut(s, n).read_bytes() for s in STEPS for n in (2, 9, 10, 11)}
    out = {}
    for (label, split), r in rows.groupby(['label', 'split']):
        name = tar_of(label, split, CLASS_NUMBERS)
        out['/' + name] = path = folder/name
        if path.exists(): continue
        with writing(path) as tmp, gzip.GzipFile(tmp, 'wb', 1, mtime=0) as z, tarfile.open(fileobj=z, mode='w|', format=tarfile.GNU_FORMAT) as tar:
            for c in r.itertuples():
                step, kind = STEPS[int(draw('video', c.youtube_id)*len(STEPS))], fate[c.youtube_id].removeprefix('tar-')
                if not fate[c.youtube_id].startswith('tar-'): kind = 'gone' if kind == 'gone' else 'fine'
                if kind == 'gone': continue
                whole = clips[step, min(11, max(9, int(c.time_end - c.time_start)))]
                data = dict(empty=b'', page=PAGE*40, cut=whole[:len(whole)//2], short=clips[step, 2]).get(kind, whole)
                m = tarfile.TarInfo(f'{label}/{c.youtube_id}_{int(c.time_start):06}_{int(c.time_end):06}.mp4')
                m.size = len(data)
                tar.addfile(m, io.BytesIO(data))
    return out

def tar_plan(tars, slow=True):
    "What goes wrong with the transfers of whole tars: each kind of break for some of them, and all go on. `slow`: also one that says no more"
    kinds = [[Fault(status=503, times=2)], [Fault(status=429, retry_after=1, times=1)], [Fault(reset=100_000), Fault(close=300_000)], [Fault(stall=200_000)] if slow else [Fault()],
             [Fault(reset=150_000, ranges=False)], [Fault(longer=700)], [Fault()], [Fault()]]
    return {t: kinds[k % len(kinds)] for k, t in enumerate(sorted(tars))}

def expected(rows, fate, source):
    "{youtube_id: reason, or 'ok'}: what the clip table must say in the end"
    what = {i: 'ok' for i in fate} | {i: 'removed' for i, f in fate.items() if f == 'gone'}
    if source == 'youtube': return what | {i: YOUTUBE[f][1] or 'ok' for i, f in fate.items() if f in YOUTUBE}
    return what | {i: MIRROR[f[4:]] for i, f in fate.items() if f.startswith('tar-')}
