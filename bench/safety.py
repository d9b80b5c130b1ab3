"""What the checks that nothing is lost cost: this version against another one, alternating in one run.

    python bench/safety.py --against DIR     # DIR: a checkout of another version; two to three minutes on two cores

Each version runs in a process of its own, which has imported everything and does one task at a time, when it is asked. A round
asks both for every task, the first of one round is the second of the next. What is printed is the speed of this version over the
speed of the other: the median over the rounds of the ratio within a round, by the clock and by the processor time used, which is
steadier where others share the machine. The bar is 0.98. Tasks:

- batches, maps kept: an epoch of 400 clips of 24 frames of 48×64 in batches of 16, memory-mapped, one process
- batches, many clips: the same of 1,600 clips, more than maps are kept
- batches, two workers: the first with two processes that fetch
- training: an epoch of 64 clips through a small CNN-LSTM
- decoding: eight frames of a clip of three seconds, 20 times"""
import argparse, importlib, json, os, platform, statistics, subprocess, sys, tempfile, time, warnings
from pathlib import Path

HERE = Path(__file__).resolve()
SHAPE = 24, 48, 64, 3
BAR = .98


def part(now, before):
    "A module of the library, which had another name before version 0.2"
    try: return importlib.import_module(f'kinetics_dance.{now}')
    except ModuleNotFoundError: return importlib.import_module(f'kinetics_dance.{before}')


def make_store(folder, n):
    "A frame store of noise, in format 2"
    import numpy as np, pandas as pd
    store = part('loading.store', 'store')
    STORE_FORMAT = getattr(store, 'STORE_FORMAT', None) or store.FORMAT
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(n):
        np.save(folder/f'clip{k:05d}.npy', rng.integers(0, 255, SHAPE, np.uint8))
        (folder/f'clip{k:05d}.json').write_text('{}')
    head = dict(format=STORE_FORMAT, n_frames=SHAPE[0], height=SHAPE[1], width=SHAPE[2], sampler='uniform', reader='pyav', compression='none')
    (folder/'store.json').write_text(json.dumps(head))
    size = (folder/'clip00000.npy').stat().st_size
    pd.DataFrame(dict(clip_id=[f'clip{k:05d}' for k in range(n)], bytes=size, sha256='')).to_parquet(folder/'index.parquet')


def tasks(at):
    "Name of each task, and a function that does it once"
    import pandas as pd, torch
    from kinetics_dance.cnn_lstm import CNNLSTM
    FrameStore = part('loading.reader', 'batches').FrameStore
    ClipDataLoaders = part('loading.dataloader', 'loading').ClipDataLoaders
    read_frames, Recipe = part('video.reading', 'reading').read_frames, part('training.recipe', 'recipe').Recipe
    learner = part('training.learner', 'training')
    fit, make_learner = learner.fit, learner.make_learner
    torch.set_num_threads(1)

    def loaders(name, n=None, bs=16, **how):
        store = FrameStore(at/name)
        ids = store.clip_ids[:n]
        split = ['valid']*3 + ['train']*(len(ids)-3)
        table = pd.DataFrame(dict(clip_id=ids, label=[f'dance {k%3}' for k in range(len(ids))], split=split))
        return ClipDataLoaders.from_store(store, table, n_frames=16, crop=(44, 60), bs=bs, flip=True, **how)

    def drain(loader): return lambda: sum(len(y) for x, y in loader)
    few, many, two = loaders('few').train, loaders('many').train, loaders('few', num_workers=2).train
    recipe = Recipe(clip_frames=16, crop_height=44, crop_width=60, batch_size=16, workers=0)
    learning = loaders('few', 67)
    learn = make_learner(CNNLSTM(n_classes=3, backbone='small', weights='none'), learning, recipe)
    return {'batches, maps kept': drain(few), 'batches, many clips': drain(many), 'batches, two workers': drain(two),
            'training': lambda: fit(learn, 1, 1e-3, recipe),
            'decoding': lambda: [read_frames(at/'clip.mp4', list(range(0, 40, 5)), size=(48, 64)) for _ in range(20)]}


def serve(at):
    "Do the tasks that are named on standard input; answer with seconds by the clock and of the processor"
    warnings.simplefilter('ignore')
    answer, sys.stdout = sys.stdout, sys.stderr
    todo = tasks(at)
    for f in todo.values(): f()
    print(json.dumps(list(todo)), file=answer, flush=True)
    for line in sys.stdin:
        began, used = time.perf_counter(), sum(os.times()[:4])
        todo[line.strip()]()
        print(json.dumps([time.perf_counter()-began, sum(os.times()[:4])-used]), file=answer, flush=True)


class Version:
    "A checkout, with a process that has it imported"
    def __init__(self, checkout, at):
        env = os.environ | {'PYTHONPATH': str(checkout), 'OMP_NUM_THREADS': '1'}
        self.process = subprocess.Popen([sys.executable, str(HERE), '--serve', str(at)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, env=env, cwd=at)
        self.names = json.loads(self.process.stdout.readline())

    def time(self, name):
        self.process.stdin.write(name+'\n')
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


def compare(against, rounds):
    with tempfile.TemporaryDirectory() as d:
        at = Path(d)
        sys.path.insert(0, str(HERE.parent.parent))
        from kinetics_dance.synthetic import uploads, dancers
        for name, n in (('few', 403), ('many', 1603)): make_store(at/name, n)
        uploads.write_video(at/'clip.mp4', dancers.render_clip('wave', 0, 4))
        ours, other = Version(HERE.parent.parent, at), Version(against, at)
        took = {name: [] for name in ours.names}
        for k in range(rounds):
            for name in took:
                first, second = ((ours, other), (other, ours))[k % 2]
                pair = {first: first.time(name), second: second.time(name)}
                took[name].append((pair[ours], pair[other]))
        ours.close()
        other.close()
    return took


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--against', metavar='DIR', help='a checkout of another version')
    p.add_argument('--rounds', type=int, default=11, help='rounds, 9 or more')
    p.add_argument('--serve', metavar='FOLDER', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.serve: return serve(Path(a.serve))
    if not a.against or not (Path(a.against)/'kinetics_dance').is_dir(): p.error('--against: a folder that holds kinetics_dance/')
    print(f'{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {a.rounds} rounds')
    failed = False
    for name, pairs in compare(Path(a.against).resolve(), a.rounds).items():
        clock, used = (statistics.median(other[i]/ours[i] for ours, other in pairs) for i in (0, 1))
        seconds = statistics.median(ours[0] for ours, _ in pairs)
        failed |= max(clock, used) < BAR
        print(f'{name:22} speed against the other: {clock:.3f} by the clock, {used:.3f} by processor time '
              f'({seconds:.2f} s; bar {BAR})', flush=True)
    return int(failed)


if __name__ == '__main__': sys.exit(main())
