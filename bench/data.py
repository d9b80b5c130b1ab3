"""The data: lists, table, mirror and downloader, each against its bar; and a public downloader of the field on the same bad server.

    python bench/data.py                                # lists, table, mirror, overhead, jobs
    python bench/data.py --peer ENV/bin/python          # also video2dataset, from an environment of its own

The real lists are read from ../shared/data/kinetics where they are; without them that part is skipped. Uploads are served on loopback."""
import argparse, io, json, multiprocessing, os, platform, re, subprocess, sys, tarfile, tempfile, time
from pathlib import Path
import numpy as np, pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tests'))
from faults import Fault, Faults
from kinetics_dance.clips.audit import audit
from kinetics_dance.clips.annotations import clip_id, read_annotations
from kinetics_dance.clips.splits import official_splits, split, wanted
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.download.downloader import download
from kinetics_dance.download.cvdf import CVDF
from kinetics_dance.video.decoding import numbered_clip

LISTS, ROWS = ROOT.parent/'shared/data/kinetics', []


def row(what, got, bar, unit='', best='low'):
    good = got <= bar if best == 'low' else got >= bar
    ROWS.append((what, got, bar, unit))
    print(f"{what:72}{got:10.2f} {unit:8}{'at most' if best == 'low' else 'at least'} {bar:8g}  {'ok' if good else 'MISSED'}", flush=True)


def manifest(lists, folder):
    "Read, audit, split, choose, write the table: seconds"
    start = time.perf_counter()
    df = pd.concat([read_annotations(l) for l in lists], ignore_index=True)
    audit(df)
    clips, _ = split(official_splits(df), 20)
    ClipTable(Path(folder)/'clips.sqlite').set(wanted(clips))
    return time.perf_counter() - start


def synthetic(path, n=650_000):
    r, letters = np.random.default_rng(0), np.array(list('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_'))
    start = r.integers(0, 300, n)
    pd.DataFrame(dict(label=[f'class {i:03}' for i in r.integers(0, 700, n)], youtube_id=[''.join(x) for x in letters[r.integers(0, 64, (n, 11))]],
                      time_start=start, time_end=start+10, split=np.where(np.arange(n) < 600_000, 'train', 'validate'))).to_csv(path, index=False)


def alone(fn, *args):
    "(result, peak memory in bytes) of a function in a process of its own"
    with multiprocessing.get_context('spawn').Pool(1) as pool: return pool.apply(_measured, (fn, args))

def _measured(fn, args):
    out = fn(*args)
    # not ru_maxrss: a process that is started inherits that of the one that starts it
    return out, 1024*int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])


def _write(path, k, n):
    t = ClipTable(path)
    for i in range(0, n, 10): t.update([dict(clip_id=clip_id(f'{k:05}{j:06}', 0, 10), status='ok', frames=300) for j in range(i, i+10)])

def writers(folder, n=2000):
    "Rows a second with 8 processes, ten rows a transaction"
    path = Path(folder)/'eight.sqlite'
    ClipTable(path).set(pd.DataFrame([dict(label='a', youtube_id=f'{k:05}{j:06}', time_start=0., time_end=10., split='train') for k in range(8) for j in range(n)]))
    ps = [multiprocessing.get_context('fork').Process(target=_write, args=(path, k, n)) for k in range(8)]
    start = time.perf_counter()
    for p in ps: p.start()
    for p in ps: p.join()
    return 8*n/(time.perf_counter() - start)


def stream_tar(url, folder, n):
    "Every tenth member of a tar that comes over HTTP"
    clips = [dict(clip_id=f'tar{i:08}_000000_000010', youtube_id=f'tar{i:08}', time_start=0., url='big.tar.gz') for i in range(0, n, 10)]
    got = 0
    for _, up in CVDF(base=url).stream(clips, Path(folder)):
        got += up.path.stat().st_size
        up.path.unlink()
    return got

def big_tar(path, megabytes=1000):
    "A tar of clips of 1 MB that do not compress"
    block = os.urandom(1_000_000)
    with tarfile.open(path, 'w:gz', compresslevel=1) as t:
        for i in range(megabytes):
            m = tarfile.TarInfo(f'tango dancing/tar{i:08}_000000_000010.mp4')
            m.size = len(block)
            t.addfile(m, io.BytesIO(block[i % 999:] + block[:i % 999]))


def plain(ids, template, folder):
    "What anybody would write: yt-dlp as a library, then ffmpeg with our settings; nothing is checked or counted"
    import imageio_ffmpeg, yt_dlp
    folder.mkdir()
    y = yt_dlp.YoutubeDL(dict(quiet=True, no_warnings=True, noprogress=True, cachedir=False, proxy='', outtmpl=str(folder/'%(id)s.%(ext)s'),
                              ffmpeg_location=imageio_ffmpeg.get_ffmpeg_exe(), fixup='never'))
    start = time.perf_counter()
    for i in ids:
        path = y.extract_info(template.format(id=i))['requested_downloads'][0]['filepath']
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-y', '-ss', '2', '-t', '10', '-threads', '1', '-i', path, '-vf', 'scale=-2:256',
                        '-c:v', 'libx264', '-preset', 'veryfast', '-crf', '20', '-g', '30', '-bf', '0', '-threads', '1', '-pix_fmt', 'yuv420p',
                        '-c:a', 'aac', '-b:a', '96k', '-movflags', '+faststart', folder/f'{i}_cut.mp4'], check=True)
        os.unlink(path)
    return time.perf_counter() - start

def ours(ids, template, folder, jobs=1, settings=None, **kwargs):
    table = ClipTable(folder/'clips.sqlite')
    table.set(pd.DataFrame([dict(label='a', youtube_id=i, time_start=2., time_end=12., split='train', source='youtube') for i in ids]))
    start = time.perf_counter()
    out = download(table, folder, url_template=template, jobs=jobs, settings=dict(sleep=0) | (settings or {}), **kwargs)
    return time.perf_counter() - start, out


def peer(python, template, ids, truth, folder, kill_after=None):
    "video2dataset on the same server: what it calls a success (and has a file of), what of that is wrong; killed once and run again if asked"
    (folder/'run.py').write_text(
        "import sys\nfrom video2dataset import video2dataset\nif __name__ == '__main__':\n"
        f"    video2dataset(url_list={str(folder/'list.parquet')!r}, output_folder={str(folder/'out')!r}, input_format='parquet', url_col='url', caption_col='caption',\n"
        "        output_format='files', encode_formats={'video': 'mp4'}, config={'subsampling': {}, 'reading': {'yt_args': {'download_size': 360}, 'timeout': 20, 'sampler': None},\n"
        "        'storage': {'number_sample_per_shard': 10, 'oom_shard_count': 5, 'captions_are_subtitles': False},\n"
        "        'distribution': {'processes_count': 2, 'thread_count': 2, 'subjob_size': 1000, 'distributor': 'multiprocessing'}})\n")
    pd.DataFrame(dict(url=[template.format(id=i) for i in ids], caption=ids)).to_parquet(folder/'list.parquet')
    start, words = time.perf_counter(), ''
    for limit in ([kill_after, 600] if kill_after else [600]):
        p = subprocess.Popen([python, folder/'run.py'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, start_new_session=True)
        try: words = p.communicate(timeout=limit)[0]
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, 9)
            p.communicate()
    ok = []
    for j in (folder/'out').rglob('*.json'):
        d = json.loads(j.read_text())
        if d.get('status') == 'success' and j.with_suffix('.mp4').is_file(): ok.append(d['caption'])
    wrong = [i for i in ok if truth[i] != 'ok']
    lost = [i for i in ids if truth[i] == 'ok' and i not in ok]
    kinds = lambda x: ', '.join(f'{n} {k}' for k, n in pd.Series([i[3:].lstrip('_') for i in x], dtype=object).value_counts().items()) or 'none'
    print(f"video2dataset{f', killed after {kill_after} s and run again' if kill_after else ''}: {len(ok) - len(wrong)} of {sum(t == 'ok' for t in truth.values())} that can be had "
          f'(not had: {kinds(lost)}), wrongly called a success: {kinds(wrong)}; {time.perf_counter() - start:.0f} s')
    if not ok: print('   its last words:', *words.strip().splitlines()[-2:], sep='\n   ')


def main():
    a = argparse.ArgumentParser()
    a.add_argument('--peer', help='python of an environment with video2dataset')
    a = a.parse_args()
    print(f'{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {time.strftime("%Y-%m-%d")}')
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        if LISTS.is_dir(): row('13,331 + 741 real rows: read, audit, split, table', manifest([LISTS/f'k700_2020_dancing_{s}.csv' for s in ('train', 'validate')], d), 3, 's')
        else: print('the real lists are not here: that part is skipped')
        (d/'big').mkdir()
        synthetic(d/'big.csv')
        seconds, peak = alone(manifest, [d/'big.csv'], d/'big')
        row('650,000 synthetic rows: read, audit, split, table', seconds, 20, 's')
        row('  peak memory', peak/1e9, 1.5, 'GB')
        row('updates of the table, 8 writers, ten rows a transaction', writers(d), 2000, 'rows/s', 'high')
        big_tar(d/'big.tar.gz')
        with Faults({'/big.tar.gz': d/'big.tar.gz'}) as s:
            start = time.perf_counter()
            (got, peak), (_, idle) = alone(stream_tar, s.url, d/'big', 1000), alone(len, ())
            row('a tar of 1 GB streamed, every tenth member taken: peak memory', peak/1e6, 300, 'MB')
            print(f'  (of which {idle/1e6:.0f} MB are the imports; {got/1e6:.0f} MB written, {1000/(time.perf_counter() - start):.0f} MB/s read)')
        (d/'big.tar.gz').unlink()
        downloads(d)
        if a.peer: faulty(d, a.peer)


def downloads(d):
    clip = numbered_clip(d/'clip.mp4', n=420, fps=30, size=(360, 640), options={'g': '250'})
    ids = [f'upload_{i:04}' for i in range(40)]
    with Faults({f'/{i}.mp4': clip for i in ids}) as s:
        rounds = []
        for k in range(3):  # each in a process of its own, so that both load what they need
            rounds.append([])
            for fn, name in ((plain, 'plain'), (ours, 'ours')):
                p, start = multiprocessing.get_context('spawn').Process(target=fn, args=(ids, s.template(), d/f'{name}{k}')), time.perf_counter()
                p.start()
                p.join()
                rounds[-1].append(time.perf_counter() - start)
                if p.exitcode: sys.exit(f'{name} ended with {p.exitcode}')
        row('downloader / plain yt-dlp and ffmpeg, one job (median of 3)', np.median([b/a for a, b in rounds]), 1.1, '×')
        print('  seconds (plain, ours): ' + ', '.join(f'{a:.1f} {b:.1f}' for a, b in rounds))
    small = numbered_clip(d/'small.mp4', n=210, fps=15, size=(96, 128))
    rate = small.stat().st_size/4
    with Faults({f'/{i}.mp4': small for i in ids}, rate=rate) as s:
        one, four = (ours(ids, s.template(), d/f'jobs{j}', j, short_side=96)[0] for j in (1, 4))
        row('four jobs against one, each upload throttled to 4 s', one/four, 3, '×', 'high')


def faulty(d, python):
    "The same 120 uploads with faults for both"
    whole = numbered_clip(d/'whole.mp4', n=180, fps=15, size=(96, 128))
    half = whole.read_bytes()[:whole.stat().st_size//2]
    kinds = dict(fine=Fault(), gone=Fault(status=404), heal=Fault(status=503, times=2), reset=Fault(reset=20_000, times=2), html=Fault(html=True), empty=Fault(body=b''),
                 cut=Fault(body=half), limit=Fault(status=429, retry_after=1, times=2))
    ids = [f'{i:03}{k:_>8}' for i in range(15) for k in kinds]      # in the order of the table, kinds alternate
    plan = {f'/{i}.mp4': kinds[i[3:].lstrip('_')] for i in ids if not i.endswith('fine')}
    truth = {i: 'ok' if i[3:].lstrip('_') in ('fine', 'heal', 'reset', 'limit') else 'not' for i in ids}
    how = dict(jobs=2, settings=dict(retries=1, wait=.1), short_side=96, wait=.1)
    for kill in (None, 8):
        with Faults({f'/{i}.mp4': whole for i in ids}, dict(plan)) as s:
            f, start = d/f'faulty{kill}', time.perf_counter()
            if kill:
                p = multiprocessing.get_context('spawn').Process(target=ours, args=(ids, s.template(), f), kwargs=how)
                p.start()
                p.join(kill)
                p.kill()
                p.join()
            _, out = ours(ids, s.template(), f, **how)
            ok = set(out.youtube_id[out.status == 'ok'])
            print(f"kinetics_dance{f', killed after {kill} s and run again' if kill else ''}: {len([i for i in ok if truth[i] == 'ok'])} of {sum(t == 'ok' for t in truth.values())} that can be had, "
                  f"wrongly called ok: {len([i for i in ok if truth[i] != 'ok'])}; {time.perf_counter() - start:.0f} s")
        (d/f'peer{kill}').mkdir()
        with Faults({f'/{i}.mp4': whole for i in ids}, dict(plan)) as s: peer(python, s.template(), ids, truth, d/f'peer{kill}', kill and 2*kill)


if __name__ == '__main__': main()
