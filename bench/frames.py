"""Frames from the store, side by side with the other ways to get them: ratios, alternating in one run.

    python bench/frames.py            # in a temporary folder; two to three minutes on two cores

Sources are photographs with a moving camera and noise, 10 s at 25 frames a second in three sizes, half of them each; six distinct
files, stored under 96 names. A batch is 8 clips of 16 frames, a window of 112 pixels out of 128×171, half of them mirrored, normalised.
The floor is copying and normalising a batch of bytes that is in memory. One thread, as the published study trains; JPEG frames are
decoded by as many as the store takes by itself. The store for 600 demo clips is built from 24 rendered clips under 600 names."""
import os, platform, subprocess, tempfile, time, warnings
warnings.filterwarnings('ignore', category=FutureWarning)
from pathlib import Path
import imageio_ffmpeg, numpy as np, pandas as pd, psutil, torch
from PIL import Image
from sklearn.datasets import load_sample_images
from kinetics_dance.synthetic import uploads, dancers
from kinetics_dance.loading.reader import FrameStore, normalise
from kinetics_dance.loading.store import build_store
from kinetics_dance.video.reading import read_frames
from kinetics_dance.video.samplers import spread, uniform
from kinetics_dance.loading.dataloader import Clips, ClipLoader
from kinetics_dance.video.encoding import normalise_clip

B, T, N, SIZE, CROP, ROUNDS = 8, 16, 32, (128, 171), (112, 112), 5
SOURCES = [(name, size) for size in ((340, 256), (640, 360), (1280, 720)) for name in ('temple', 'flower')]
quiet = lambda line: None


def make_source(path, photo, size):
    "Ten seconds of a camera that moves over a photograph, with noise, as a platform would encode it"
    w, h = size
    move = f"scale={w*5//4}:{h*5//4},crop={w}:{h}:x='(iw-ow)*(.5+.5*sin(t))':y='(ih-oh)*(.5+.5*cos(t*.7))',noise=alls=6:allf=t"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-y', '-loop', '1', '-framerate', '25', '-t', '10', '-i', photo, '-vf', move,
                    '-c:v', 'libx264', '-preset', 'veryfast', '-crf', '23', '-g', '250', '-pix_fmt', 'yuv420p', path], check=True)


def cut(frames, rng):
    "Crop, mirror and normalise a list of (T,H,W,3) arrays, the plain way"
    out = []
    for x in frames:
        y, z = rng.integers(0, SIZE[0]-CROP[0]+1), rng.integers(0, SIZE[1]-CROP[1]+1)
        x = x[:, y:y+CROP[0], z:z+CROP[1]]
        out.append(x[:, :, ::-1] if rng.random() < .5 else x)
    return normalise(torch.from_numpy(np.stack(out)))


def jpegs(folder, index):
    "Full-size files with PIL, scaled to the size of the store"
    return np.stack([np.asarray(Image.open(folder/f'{i:05d}.jpg').convert('RGB').resize(SIZE[::-1], Image.Resampling.BILINEAR)) for i in index])


def rate(f, clips):
    "Clips a second"
    start = time.perf_counter(); f()
    return clips/(time.perf_counter() - start)


def main():
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        for name, photo in zip(('flower', 'temple'), load_sample_images()['images'][::-1]): Image.fromarray(photo).save(d/f'{name}.png')
        for k, (name, size) in enumerate(SOURCES):
            make_source(d/f'source{k}.mp4', d/f'{name}.png', size)
            normalise_clip(d/f'source{k}.mp4', d/f'clip{k}.mp4')
            (d/f'jpeg{k}').mkdir()
            for i, x in enumerate(read_frames(d/f'source{k}.mp4', uniform(250, N))): Image.fromarray(x).save(d/f'jpeg{k}/{i:05d}.jpg', quality=90)
        table = pd.DataFrame([(f'c{i:02}', f'clip{i % 6}.mp4', 'a') for i in range(96)], columns=['clip_id', 'path', 'label'])
        stores, loaders = {}, {}
        for form in ('none', 'jpeg'):
            build_store(table, d/form, n_frames=N, size=SIZE, compression=form, log=quiet)
            stores[form] = FrameStore(d/form)
            loaders[form] = ClipLoader(Clips(stores[form], table, ['a'], T, CROP, flip=True), bs=B, train=True, color_jitter=0)
        memory = torch.from_numpy(rng.integers(0, 256, (4, B, T, *CROP, 3), np.uint8))

        def epoch(form): [None for _ in loaders[form]]
        def floor():
            for _ in range(3):
                for x in memory: normalise(x.clone())
        some = lambda: rng.integers(0, 6, B)
        phase = lambda n: spread(n, T, rng.random(1))[0]
        ways = {
            'store': (lambda: epoch('none'), 96), 'store, JPEG': (lambda: epoch('jpeg'), 96), 'floor': (floor, 12*B),
            'decoding the source': (lambda: cut([read_frames(d/f'source{k}.mp4', phase(250), size=SIZE) for k in some()], rng), B),
            'decoding the normalised clip': (lambda: cut([read_frames(d/f'clip{k}.mp4', phase(250), size=SIZE) for k in some()], rng), B),
            'full-size JPEG files, PIL': (lambda: cut([jpegs(d/f'jpeg{k}', phase(N)) for k in some()], rng), B)}
        for name in ('store', 'store, JPEG', 'floor'): ways[name][0]()     # open what stays open
        got, fast = [], [name for name, (f, n) in ways.items() if n > B]
        for _ in range(ROUNDS):
            # the fast ones take milliseconds: several times a round, in turn
            times = {name: [] for name in ways}
            for _ in range(6):
                for name in fast: times[name].append(rate(*ways[name]))
            for name in ways.keys() - set(fast): times[name].append(rate(*ways[name]))
            got.append({name: np.median(v) for name, v in times.items()})
        pixels, packed = (s.nbytes for s in stores.values())

        for k in range(24): uploads.write_video(d/f'demo{k}.mp4', dancers.render_clip(list(dancers.PAIRS)[k % 6], k % 2, k))
        many = pd.DataFrame([(f'c{i:03}', f'demo{i % 24}.mp4') for i in range(600)], columns=['clip_id', 'path'])
        start = time.perf_counter(); out = build_store(many, d/'demo', n_frames=24, size=(48, 64), jobs=2, log=quiet); built = time.perf_counter() - start
        assert out.status.eq('ok').all()

    got = pd.DataFrame(got)
    ratio = lambda a, b: (got[a]/got[b]).median()      # of what was measured in one round
    print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total/2**30:.0f} GiB, Python {platform.python_version()}')
    for k in got: print(f'  {k:32}{got[k].median():8.0f} clips/s   ({got[k].min():.0f} to {got[k].max():.0f} in {ROUNDS} rounds)')
    rows = [(f'store / {k}', ratio('store', k), '≥', bar)
            for k, bar in (('decoding the source', 100), ('decoding the normalised clip', 20), ('full-size JPEG files, PIL', 40))]
    rows += [('floor / store', ratio('floor', 'store'), '≤', 4.5), ('JPEG store: disk, share of pixels', packed/pixels, '≤', 1/8),
             ('JPEG store: speed, share of raw', ratio('store, JPEG', 'store'), '≥', .4), ('store for 600 demo clips, s', built, '≤', 60)]
    for what, value, sign, bar in rows: print(f'{what:38}{value:8.3g}   bar {sign} {bar:<6.3g} {"met" if (value >= bar if sign == "≥" else value <= bar) else "MISSED"}')


if __name__ == '__main__': main()
