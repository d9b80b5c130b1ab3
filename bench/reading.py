"""Reading frames: against decord, PyAV, torchcodec and OpenCV alone, in a worker that can be killed,
with two of them, at random. Reading runs on one core: as many clips at once as there are cores is what a study does.

    python bench/reading.py            # about two minutes on two cores, which should have nothing else to do
    python bench/reading.py --files    # and which reader shows the right frames of which odd file

All rivals of a comparison take turns in one run; each number is the median of its rounds. A rival that is not installed is left out."""
import argparse, itertools, os, platform, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median
import numpy as np
from kinetics_dance.video import decoding, odd_files
from kinetics_dance.video.reading import read_frames
from kinetics_dance.core.processes import worker_pool
from kinetics_dance.video.encoding import normalise_clip

SIZE = 128, 171                       # of the frames, as the store has them
H, W = 256, 340
CORES = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else None


def rivals():
    "{name: function(path, numbers)} of what is installed: the shortest way to exactly these frames, scaled, as an array"
    def pyav(path, wanted):
        import av
        from av.video.reformatter import VideoReformatter
        out, scale = [], VideoReformatter()
        with av.open(str(path)) as c:
            v = c.streams.video[0]; v.thread_type, v.thread_count = 'NONE', 1
            for i, f in enumerate(c.decode(v)):
                if i == wanted[len(out)]: out.append(scale.reformat(f, SIZE[1], SIZE[0], 'rgb24', interpolation='BILINEAR', threads=1).to_ndarray())
                if len(out) == len(wanted): return np.stack(out)
    def decord(path, wanted):
        from decord import VideoReader, cpu
        return VideoReader(str(path), cpu(0), width=SIZE[1], height=SIZE[0], num_threads=1).get_batch(list(wanted)).asnumpy()
    def torchcodec(path, wanted):
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize
        return VideoDecoder(str(path), dimension_order='NHWC', transforms=[Resize(SIZE)]).get_frames_at([int(i) for i in wanted]).data.numpy()
    def opencv(path, wanted):
        import cv2
        cv2.setNumThreads(1)
        # its decoder takes all cores unless told
        c, out = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), []
        for i in range(wanted[-1]+1):
            c.grab()
            if i == wanted[len(out)]: out.append(cv2.cvtColor(cv2.resize(c.retrieve()[1], SIZE[::-1], interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB))
        return np.stack(out)
    return dict(decord=decord, PyAV=pyav, torchcodec=torchcodec, OpenCV=opencv)


def on_one_core(yes):
    "As a worker among others has it: some rivals take all the cores they see"
    if hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, sorted(CORES)[:1] if yes else CORES)


def take_turns(functions, rounds):
    "{name: median seconds}; every other round goes backwards"
    took = {k: [] for k in functions}
    for f in functions.values(): f()
    for r in range(rounds):
        for k in list(functions)[::1-r%2*2]:
            t = time.perf_counter(); functions[k]()
            took[k].append(time.perf_counter()-t)
    return {k: median(v) for k, v in took.items()}


def show(what, got, unit, bar, ok): print(f'{what:64}{got:7.2f} {unit:2} bar {bar:6} {"" if ok else "  MISSED"}')


def look(path, wanted):
    "A job of the store: the frames stay in the worker"
    return read_frames(path, wanted, size=SIZE).shape


def many(pool, paths, wanted):
    for f in [pool.schedule(look, args=(p, wanted), timeout=60) for p in paths]: f.result()


def speed(folder, rounds):
    run = lambda *a: subprocess.run([__import__('imageio_ffmpeg').get_ffmpeg_exe(), '-v', 'error', '-y', *map(str, a)], check=True)
    run('-f', 'lavfi', '-i', f'mandelbrot=size={W}x{H}:rate=30,noise=alls=6:allf=t', '-t', '10', '-c:v', 'libx264', '-preset', 'veryfast', folder/'upload.mp4')
    normalise_clip(folder/'upload.mp4', folder/'clip.mp4')
    normalise_clip(folder/'upload.mp4', folder/'gop250.mp4', gop=250)
    path, n = folder/'clip.mp4', 300
    print(f'a clip of {n} frames, {W}×{H}, {path.stat().st_size/1e6:.1f} MB')
    on_one_core(True)
    there = {}
    for name, f in rivals().items():
        try: x = f(path, np.array([0, 150, 299]))
        except (ImportError, OSError, RuntimeError) as e: print(f'  without {name}: {str(e).splitlines()[0][:70]}'); continue
        assert abs(x.astype(int)-read_frames(path, [0, 150, 299], size=SIZE)).mean() < 8, f'{name} shows other frames'
        there[name] = f
    for t in (16, 32):
        wanted = np.linspace(0, n-1, t).round().astype(int)
        took = take_turns({'ours': lambda: read_frames(path, wanted, size=SIZE)} | {k: lambda f=f: f(path, wanted) for k, f in there.items()}, rounds)
        print(f'  {t} frames: ' + ', '.join(f'{k} {1e3*v:.0f} ms' for k, v in took.items()))
        ours = took.pop('ours')
        if 'decord' in took: show(f'read_frames, {t} frames, against decord alone', ours/took['decord'], '×', '≤ 1.05', ours <= 1.05*took['decord'])
        best = min(took, key=took.get)
        show(f'read_frames, {t} frames, against the fastest ({best})', ours/took[best], '×', '≤ 1.1', ours <= 1.1*took[best])
    with worker_pool(1) as one:
        took = take_turns(dict(here=lambda: look(path, wanted), worker=lambda: one.schedule(look, args=(path, wanted), timeout=60).result()), rounds)
        cost = took['worker']/took['here']-1
        show(f'a worker that can be killed, {took["here"]*1e3:.0f} ms a clip, 32 frames', 100*cost, '%', '≤ 5', cost <= .05)
    on_one_core(False)
    with worker_pool(1) as one, worker_pool(2) as two:
        took = take_turns({'1': lambda: many(one, [path]*12, wanted), '2': lambda: many(two, [path]*12, wanted)}, max(3, rounds//4))
        show('clips a second, two workers against one', took['1']/took['2'], '×', '≥ 1.8', took['1'] >= 1.8*took['2'])
    on_one_core(True)
    rng = np.random.default_rng(0)
    picks = itertools.cycle([np.sort(rng.choice(n, 4, replace=False)) for _ in range(40)])
    took = {k: [] for k in ('clip', 'gop250')}
    for _ in range(2*rounds):
        wanted = next(picks)
        for k, v in take_turns({k: lambda k=k: read_frames(folder/f'{k}.mp4', wanted, size=SIZE) for k in took}, 1).items(): took[k].append(v)
    took = {k: median(v) for k, v in took.items()}
    show(f'4 of 300 frames, key frames 250 apart against ours ({took["clip"]*1e3:.0f} ms)', took['gop250']/took['clip'], '×', '≥ 2', took['gop250'] >= 2*took['clip'])
    on_one_core(False)


def by_reader(path, name, reader):
    "In a worker: what a reader, left to itself, makes of an odd file"
    recipe = odd_files.ODD_FILES[name]
    n = {'decord': lambda: __import__('decord').VideoReader(str(path), num_threads=1).get_batch,
         'torchcodec': lambda: (lambda i: __import__('torchcodec.decoders').decoders.VideoDecoder(str(path), dimension_order='NHWC').get_frames_at(i).data),
         'ours': lambda: (lambda i: read_frames(path, i))}
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decord's ffmpeg talks
    get = n[reader](); shown = [i for i in range(len(recipe.shown)) if i % 3 == 0]
    x = get(shown); x = x.asnumpy() if hasattr(x, 'asnumpy') else np.asarray(x)
    got = decoding.read_numbers(np.rot90(x, -recipe.turn//90, axes=(1, 2))).tolist()
    wrong = sum(a != recipe.shown[b] for a, b in zip(got, shown))
    return f'{wrong} of {len(shown)} WRONG' if wrong else 'right'


def files(folder):
    "Every third frame of each odd file, asked for at once"
    there = ['ours', *(k for k in ('decord', 'torchcodec') if k in rivals() and __import__('importlib.util').util.find_spec(k))]
    print(f'\n{"every third frame of":32}' + ''.join(f'{k:22}' for k in there))
    with worker_pool(1) as pool:
        for name in odd_files.ODD_FILES:
            if not odd_files.ODD_FILES[name].shown: continue
            try: path = odd_files.odd_file(name, folder)
            except LookupError: continue
            row = []
            for reader in there:
                try: row.append(pool.schedule(by_reader, args=(path, name, reader), timeout=20).result())
                except TimeoutError: row.append('HANGS')
                except Exception as e: row.append(f'error: {type(e).__name__}'[:21])
            print(f'{name:32}' + ''.join(f'{x:22}' for x in row))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--files', action='store_true', help='which reader shows the right frames of which odd file')
    args = parser.parse_args()
    print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}')
    with tempfile.TemporaryDirectory() as d:
        speed(Path(d), args.rounds)
        if args.files: files(Path(d))


if __name__ == '__main__': main()
