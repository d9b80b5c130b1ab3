"""Past one machine: cost a clip from 100 to 20,000 clips, two workers against one, the scheduler's share, a table of 650,000 rows, 64 workers.

    python bench/scale.py                    # all of it, about a quarter of an hour on two cores
    python bench/scale.py table workers      # parts: growth table cost workers overhead simulated

What it measures of the constants of the page "What all of Kinetics-700 costs" goes to results/constants.json."""
import json, os, platform, random, re, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, pandas as pd

ROOT, CONSTANTS, MISSED = Path(__file__).resolve().parent.parent, {}, []
sys.path.insert(0, str(ROOT/'tests'))
from kinetics_dance.clips.table import ClipTable


def row(what, got, bar, unit='', best='low'):
    good = got <= bar if best == 'low' else got >= bar
    if not good: MISSED.append(what)
    print(f"{what:72}{got:10.3f} {unit:8}{'at most' if best == 'low' else 'at least'} {bar:8g}  {'ok' if good else 'MISSED'}", flush=True)


def measured(name, value, unit):
    CONSTANTS[name] = dict(value=float(f'{value:.4g}'), unit=unit)
    print(f'  constant {name}: {value:.4g} {unit}', flush=True)


def exponent(n, cost):
    "Slope of log cost over log n: 1 is a constant cost a clip"
    return float(np.polyfit(np.log(n), np.log(cost), 1)[0])


class Here:
    "A pool that does jobs in this process: what is left is our own cost"
    here = True
    def __init__(self, threads=1): self.pool = ThreadPoolExecutor(threads)
    def schedule(self, fn, args=(), kwargs=None, timeout=None): return self.pool.submit(fn, *args, **(kwargs or {}))
    def room(self): return 4
    def stop(self): pass


def ids(n):
    r, letters = random.Random(0), 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_'
    return [''.join(r.choices(letters, k=11)) for _ in range(n)]


def quiet(line): pass


def rows(names): return pd.DataFrame(dict(label=[f'class {i % 700:03}' for i in range(len(names))], youtube_id=names, time_start=0., time_end=2., split='train', source='folder'))


def memory(key='VmRSS'): return 1024*int(re.search(rf'{key}:\s+(\d+)', Path('/proc/self/status').read_text())[1])


def downloaded(d, n):
    "Really fetched from a folder, cut, decoded, counted: clips of eight tiny frames"
    from kinetics_dance.download.downloader import download
    from kinetics_dance.video.decoding import numbered_clip
    f = d/f'growth{n}'
    (f/'videos').mkdir(parents=True)
    up, t = numbered_clip(d/'u.mp4', n=8, fps=8, size=(32, 32)), ClipTable(f/'clips.sqlite')
    t.set(rows(ids(n)).assign(url=str(up), time_end=1.))
    assert (download(t, f, pool=Here(), short_side=32).status == 'ok').all()
    return sum(p.stat().st_size for p in f.glob('clips.sqlite*'))


def stored(d, n):
    "Frames of tiny clips, decoded and stored"
    from kinetics_dance.loading.store import build_store
    from kinetics_dance.video.decoding import numbered_clip
    from kinetics_dance.video.encoding import normalise_clip
    if not (d/'tiny.mp4').exists(): normalise_clip(numbered_clip(d/'v.mp4', n=8, fps=8, size=(32, 32)), d/'tiny.mp4', 0, 1, 32)
    clips = pd.DataFrame(dict(clip_id=[f'c{i:06}' for i in range(n)], path=str(d/'tiny.mp4')))
    assert (build_store(clips, d/f'store{n}', n_frames=2, size=(24, 24), pool=Here(), log=quiet).status == 'ok').all()
    return sum(p.stat().st_size for p in (d/f'store{n}').glob('index.parquet'))


def grow(what, n):
    "CPU seconds, memory above that of a small run before, bytes of the table; in this process, which did nothing else"
    with tempfile.TemporaryDirectory() as d:
        WORK[what](Path(d), 50)
        before = memory()
        Path('/proc/self/clear_refs').write_text('5')  # the peak from here on
        start = time.process_time()
        size = WORK[what](Path(d), n)
        return dict(clips=n, seconds=time.process_time() - start, memory=max(4096, memory('VmHWM') - before), table=size)


WORK = dict(downloaded=downloaded, stored=stored)

def growth(d):
    "Cost a clip from 100 to 20,000 clips: time, memory, the table; each number of clips in a process of its own"
    for what in WORK:
        out = pd.DataFrame([json.loads(subprocess.run([sys.executable, __file__, '--grow', what, str(n)], capture_output=True, text=True, check=True, cwd=ROOT).stdout)
                            for n in (100, 500, 2500, 20_000)])
        print(out.assign(cpu_ms_a_clip=1e3*out.seconds/out.clips, memory_MB=out.memory/1e6, table_kB=out.table/1e3).drop(columns=['seconds', 'memory', 'table']).round(3).to_string(index=False))
        row(f'{what}, 100 to 20,000 clips: exponent of CPU time', exponent(out.clips, out.seconds), 1.05)
        row('  of memory', exponent(out.clips, out.memory), 1.05)
        row('  of the table (from 500 on: a small one is pages and headers)', exponent(out.clips[1:], out.table[1:]), 1.05)
        last = out.iloc[-1]
        print(f'  memory at 20,000 clips: {last.memory/1e6:.1f} MB more than before, {last.memory/last.clips/1e3:.2f} kB a clip')


def table(d, n=650_000):
    "A download of 650,000 clips that are all there is started again"
    from kinetics_dance.download import downloader as lib
    f = d/'table'
    (f/'videos').mkdir(parents=True)
    t = ClipTable(f/'clips.sqlite')
    t.set(rows(ids(n)).assign(source='youtube'))
    made, names = lib._made_of(dict(source=None), '', 256, None), t.frame().clip_id
    for c in names: os.close(os.open(f/'videos'/f'{c}.mp4', os.O_CREAT | os.O_WRONLY))
    t.update([dict(clip_id=c, status='ok', path=f'videos/{c}.mp4', bytes=0, sha256='0'*64, width=340, height=256, fps=30., frames=300, seconds=10., made_of=made) for c in names])
    del names
    start, cpu = time.perf_counter(), time.process_time()
    out = lib.download(t, f)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert len(out) == n and (out.attempts == 0).all()
    row('650,000 rows with their files: resumed', seconds, 10, 's')
    print(f'  of it CPU {cpu:.1f} s; memory {memory()/1e9:.2f} GB')
    measured('row_bytes', sum(p.stat().st_size for p in f.glob('clips.sqlite*'))/n, 'bytes')


def videos(d):
    "Real videos where they are at hand, and what to call them"
    from bench.kinetics import MEDIA
    from kinetics_dance.video.decoding import numbered_clip
    files = [f for f in MEDIA if f.exists()]
    if files: return files, f'{len(files)} real videos'
    return [numbered_clip(d/'upload.mp4', n=300, fps=30, size=(360, 640), options={'g': '250'})], 'a numbered clip: real videos (../shared/data/media) are not here'


def cut(file, to):
    "As the downloader leaves them: (CPU seconds, what it says of the clip)"
    from bench.kinetics import best, length
    from kinetics_dance.download.downloader import cut_video
    return best(lambda: cut_video(file, to, 0, min(10, length(file)), 256))


def cost(d):
    "What a real clip of ten seconds takes of one core and of the disk, and how many of them a process reads out of shards: medians over real videos"
    from bench.kinetics import best
    from kinetics_dance.loading.store import build_store
    files, where = videos(d)
    clips, facts = pd.DataFrame(dict(clip_id=[f'c{i:06}' for i in range(len(files))], path=[str(d/f'{i}.mp4') for i in range(len(files))])), []
    for i, f in enumerate(files):
        took, info = cut(f, d/f'{i}.mp4')
        def keep(): # another folder each time: what is there is not made again
            at = Path(tempfile.mkdtemp(dir=d))/'f'
            return at, build_store(clips[i:i+1], at, n_frames=32, size=(128, 171), pool=Here(), log=quiet, compression='jpeg')
        stored, (at, out) = best(keep)
        assert (out.status == 'ok').all(), out.detail.tolist()
        jpeg = sum(p.stat().st_size for p in at.glob('c*') if p.suffix != '.json')
        ten = 10/info['seconds']
        facts.append((took*ten, stored*ten, (d/f'{i}.mp4').stat().st_size*ten, jpeg/(32*128*171*3)))
    print(f'  of {where}')
    for name, unit, values in zip(('cut_seconds', 'store_seconds', 'clip_bytes', 'jpeg_share'), ('core s', 'core s', 'bytes', 'share'), zip(*facts)):
        measured(name, float(np.median(values)), unit)
        print('    each: ' + ', '.join(f'{v:.3g}' for v in values))
    measured('read_rate', 1/reading(d, clips), 'clips/core s')


def reading(d, clips, n=400):
    "CPU seconds of one process for a clip out of shards: 16 frames of 112×112, decoded, cut, normalised, augmented, in batches of 16"
    from kinetics_dance.loading.dataloader import ClipDataLoaders
    from kinetics_dance.loading.shards import pack_store
    from kinetics_dance.loading.store import build_store
    from kinetics_dance.loading.streaming import PackedStore
    import torch
    torch.set_num_threads(1)
    table = pd.DataFrame(dict(clip_id=[f'r{i:06}' for i in range(n)], path=[clips.path[i % len(clips)] for i in range(n)],
                              label=[f'class {i % 2}' for i in range(n)], split=['train' if i < n - 2 else 'valid' for i in range(n)]))
    build_store(table, d/'read', n_frames=32, size=(128, 171), pool=Here(), log=quiet, compression='jpeg')
    pack_store(d/'read', d/'packs', 64, log=None)
    store, took = PackedStore(d/'packs'), []
    store.threads = 1
    dl = ClipDataLoaders.from_store(store, table, n_frames=16, crop=(112, 112), bs=16, flip=True).train
    for _ in range(3):
        start = time.process_time()
        seen = sum(len(x) for x, _ in dl)
        took.append((time.process_time() - start)/seen)
    return min(took)


STORED = dict(n_frames=32, size=(128, 171), log=quiet)

def listed(paths, n): return pd.DataFrame(dict(clip_id=[f'c{i:06}' for i in range(n)], path=[paths[i % len(paths)] for i in range(n)]))


def burn(paths, n):
    "The work of the workers alone: the same clips, decoded and stored"
    from kinetics_dance.loading.store import build_store
    with tempfile.TemporaryDirectory() as d: build_store(listed(paths, n), Path(d)/'f', pool=Here(), **STORED)


def workers(d):
    "Frames by one worker and by two, processes warm, in turns; and what two bare processes gain over one here: of clips that are real, and of one that costs little"
    import multiprocessing
    from bench import scale as lib
    from kinetics_dance.core.cluster import workers as cluster
    from kinetics_dance.loading.store import build_store
    from kinetics_dance.video.decoding import numbered_clip
    from kinetics_dance.video.encoding import normalise_clip
    files, where = videos(d)
    real, color_jitter = [str(d/f'w{i}.mp4') for i in range(len(files))], [str(d/'light.mp4')]
    for f, to in zip(files, real): cut(f, Path(to))
    normalise_clip(numbered_clip(d/'v.mp4', n=300, fps=30, size=(360, 640)), color_jitter[0], 0, 10)
    with cluster('local:1', d, log=quiet) as one, cluster('local:2', d, log=quiet) as two, multiprocessing.get_context('spawn').Pool(2) as pool2:
        pool2.starmap(lib.burn, [(color_jitter, 2)]*2, chunksize=1)
        for what, paths, n in ((where, real, 100), ('a clip that is easily decoded', color_jitter, 300)):
            seconds, bare = {1: [], 2: []}, {1: [], 2: []}
            for turn in range(4):
                for k, pool in ((1, one), (2, two)):
                    start = time.perf_counter()
                    out = build_store(listed(paths, n if turn else 10), d/f'{len(paths)}-{k}-{turn}', pool=pool, **STORED)
                    assert (out.status == 'ok').all()
                    if turn: seconds[k].append(time.perf_counter() - start)
                    start = time.perf_counter()
                    pool2.starmap(lib.burn, [(paths, n//k)]*k, chunksize=1)
                    if turn: bare[k].append(time.perf_counter() - start)
            ours, floor = (min(s[1])/min(s[2]) for s in (seconds, bare))
            text = f'{what}, {1e3*min(bare[1])/n:.0f} ms each: two workers against one'
            if paths is real: row(text, ours, 1.7, '×', 'high')
            else: print(f'{text:72}{ours:10.3f} ×')
            print(f'  two bare processes against one {floor:.2f} ×; ours is {ours/floor:.2f} of that. Seconds: '
                  f'{ {k: [round(x, 1) for x in s] for k, s in seconds.items()} }, bare: { {k: [round(x, 1) for x in s] for k, s in bare.items()} }')


def nothing(k): return k

def overhead(d, n=2000):
    "Jobs that do nothing, through scheduler, worker and its process"
    from kinetics_dance.core.cluster import workers as cluster
    from bench import scale as lib
    with cluster('local:2', d, log=quiet, ahead=8) as pool:
        def go(n):
            from concurrent.futures import FIRST_COMPLETED, wait
            out, left, start = set(), iter(range(n)), time.perf_counter()
            while True:
                while len(out) < pool.room() and (k := next(left, None)) is not None: out.add(pool.schedule(lib.nothing, (k,), timeout=60))
                if not out: return time.perf_counter() - start
                out = wait(out, return_when=FIRST_COMPLETED).not_done
        go(100)
        best = min(go(n) for _ in range(3))
    row('scheduler: a job that does nothing', 1e3*best/n, 5, 'ms')
    measured('overhead', best/n, 's')


def sleep(seconds): time.sleep(seconds)

def simulated(d, workers=64, rounds=12):
    "64 workers, threads that sleep as long as a clip takes: how busy are they?"
    from distributed import Client, LocalCluster
    from kinetics_dance.core.cluster import Workers
    from kinetics_dance.study.scale import constants
    import kinetics_dance.core.cluster as lib
    mean, r = (CONSTANTS.get('cut_seconds') or dict(value=constants()['cut_seconds']))['value'], random.Random(0)
    mean += (CONSTANTS.get('upload_bytes') or dict(value=3e6))['value']/2e6  # a platform gives one connection about 2 MB/s
    jobs = [mean*r.lognormvariate(-.08, .4) for _ in range(workers*rounds)]
    class Threads(Workers): # a worker's thread sleeps by itself: 64 processes would measure this machine
        pass
    real = lib._on_worker
    def on_worker(parcel, timeout):
        from distributed import get_worker
        return get_worker().address, lib._open(parcel)
    lib._on_worker = on_worker
    try:
        with LocalCluster(n_workers=workers, threads_per_worker=1, processes=False, memory_limit=0, dashboard_address=None, silence_logs=50) as c, Client(c) as client:
            pool = Threads(client, d, quiet, patience=60, here=True)
            while pool.room() < 2*workers: time.sleep(.2)
            from concurrent.futures import FIRST_COMPLETED, wait
            out, left, start = set(), iter(jobs), time.perf_counter()
            while True:
                while len(out) < pool.room() and (s := next(left, None)): out.add(pool.schedule(time.sleep, (s,)))
                if not out: break
                done, out = wait(out, return_when=FIRST_COMPLETED)
            seconds = time.perf_counter() - start
    finally: lib._on_worker = real
    # the end, when there is less left than there are workers, is not the scheduler's: the best order of the same jobs has it too
    free = [0.]*workers
    for s in jobs:
        k = free.index(min(free))
        free[k] += s
    row(f'{workers} simulated workers, {mean:.2f} s a clip on average: busy', 100*max(free)/seconds, 95, '%', 'high')
    print(f'  {len(jobs)} clips in {seconds:.1f} s; {max(free):.1f} s if nobody ever waited; {100*sum(jobs)/workers/seconds:.1f} % with the end counted')


PARTS = dict(growth=growth, table=table, cost=cost, workers=workers, overhead=overhead, simulated=simulated)


def main():
    if sys.argv[1:2] == ['--grow']: return print(json.dumps(grow(sys.argv[2], int(sys.argv[3]))))
    parts = sys.argv[1:] or list(PARTS)
    if wrong := set(parts) - set(PARTS): sys.exit(f'{sorted(wrong)[0]}: none of {", ".join(PARTS)}')
    print(f'{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {time.strftime("%Y-%m-%d")}')
    with tempfile.TemporaryDirectory() as d:
        for p in parts:
            print(f'-- {p}', flush=True)
            PARTS[p](Path(d))
    path = ROOT/'results'/'constants.json'
    old = json.loads(path.read_text())['constants'] if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    where = dict(machine=f'{os.cpu_count()} cores, {platform.machine()}', date=time.strftime('%Y-%m-%d'))
    new = old | {k: v | where for k, v in CONSTANTS.items()}
    if CONSTANTS: path.write_text(json.dumps(dict(constants=dict(sorted(new.items()))), indent=1) + '\n')
    if MISSED: print(f'missed: {len(MISSED)}')


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    main()
