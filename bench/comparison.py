"""The comparison at size: 10 models × 5 training runs × 50,000 clips, 2,000 resamples, from files to verdicts.

    python bench/comparison.py [--small] [--coverage]

Bars: 60 s and 4 GB on two cores. The peer is the usual way to do it, a loop that draws clips and calls scikit-learn for each
resample; it is timed on a few resamples and scaled up. `--coverage` simulates 2,000 studies of each kind instead, and counts how
often the 95 % interval contains the truth and how often two equal models are called different (a few minutes)."""
import argparse, os, platform, resource, sys, tempfile, time
from pathlib import Path
import numpy as np, pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
MODELS, RUNS, CLIPS, CLASSES, RESAMPLES = 10, 5, 50_000, 15, 2000


def write(folder, models, runs, clips):
    "Predictions files of made-up models, two clips an upload"
    rng, names = np.random.default_rng(0), [f'class {k:02d}' for k in range(CLASSES)]
    y, group = rng.integers(0, CLASSES, clips), np.arange(clips)//2
    hard = rng.normal(size=clips//2 + 1)[group] + rng.normal(size=clips)
    base = pd.DataFrame({'clip_id': [f'u{g:06d}_{i%2*10:06d}_{i%2*10+10:06d}' for i, g in enumerate(group)], 'group': [f'u{g:06d}' for g in group],
                         'label': np.array(names)[y], 'split': 'test'})
    files = {}
    for m in range(models):
        for s in range(runs):
            said = np.where(hard + rng.normal(size=clips) < .3 + .05*m, y, rng.integers(0, CLASSES, clips))
            p = rng.dirichlet(np.ones(CLASSES), clips).astype(np.float32)*.4
            p[np.arange(clips), said] += .6
            f = folder/f'm{m}'/f'seed{s}.parquet'
            f.parent.mkdir(exist_ok=True)
            pd.concat([base, pd.DataFrame(p/p.sum(1, keepdims=True), columns=[f'p_{n}' for n in names])], axis=1).to_parquet(f)
            files.setdefault(f'm{m}', {})[s] = f
    return files


def naive(p, resamples):
    "Seconds for `resamples` resamples the usual way: draw uploads, gather their clips, score every run with scikit-learn"
    from sklearn.metrics import accuracy_score, f1_score
    rng, t = np.random.default_rng(0), time.perf_counter()
    members = np.split(np.argsort(p.group, kind='stable'), np.cumsum(np.bincount(p.group))[:-1])
    said = {m: p.y_pred(m) for m in p.probs}
    for _ in range(resamples):
        i = np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
        for m in said:
            for y in said[m]: accuracy_score(p.y_true[i], y[i]), f1_score(p.y_true[i], y[i], average='macro')
    return time.perf_counter() - t


def size(small):
    from kinetics_dance.comparison import compare
    models, runs, clips, resamples = (3, 2, 5000, 200) if small else (MODELS, RUNS, CLIPS, RESAMPLES)
    print(f'{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}')
    with tempfile.TemporaryDirectory() as d:
        files = write(Path(d), models, runs, clips)
        before = resource.getrusage(resource.RUSAGE_SELF)
        t = time.perf_counter()
        c = compare(files, n_resamples=resamples, baseline='m0')
        wall, after = time.perf_counter() - t, resource.getrusage(resource.RUSAGE_SELF)
    cpu, peak = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, after.ru_maxrss/2**20
    k = 2
    usual = naive(c.predictions, k)*resamples/k
    print(f'{models} models × {runs} runs × {clips:,} clips, {resamples:,} resamples, {len(c.pairs)} pairs of models')
    print(f'  seconds            {wall:8.1f}   bar 60: {"met" if wall < 60 else "MISSED"}')
    print(f'  processor seconds  {cpu:8.1f}')
    print(f'  peak memory (GB)   {peak:8.2f}   bar 4: {"met" if peak < 4 else "MISSED"} (with the made-up files of this script, before)')
    print(f'  the usual loop     {usual:8.0f}   (accuracy and macro-F1 only, {k} resamples scaled up): ours is {usual/wall:,.0f} times as fast')


def coverage(n=2000):
    from kinetics_dance.evaluation.intervals import Estimate, upload_weights
    from kinetics_dance.evaluation.predictions import simulate
    kinds = {'1 run': dict(seeds=1, run=0), '2 runs alike': dict(seeds=2, run=0), '2 runs': dict(seeds=2), '2 runs that differ': dict(seeds=2, run=.1),
             '3 runs alike': dict(run=0), '3 runs': {}, '3 runs that differ': dict(run=.1), '3 runs, 200 uploads': dict(run=.05, uploads=200),
             '3 runs, right on 50 %': dict(a=.5), '3 runs, right on 95 %, 200 uploads': dict(a=.95, uploads=200), '3 runs, right on 95 %, 60 uploads': dict(a=.95),
             '5 runs, 4 clips an upload': dict(seeds=5, clips=4, run=.05), '2 runs, five times the spread of uploads': dict(seeds=2, run=.4)}
    print(f'{n} simulated studies each: share of 95 % intervals that contain the truth; false alarms of the paired test')
    for kind, kw in kinds.items():
        kw, rng, inside, alarms = dict(kw), np.random.default_rng(0), 0, 0
        a = kw.pop('a', .8)
        for i in range(n):
            p = simulate(rng, {'a': a, 'b': a}, **kw)
            w, g = upload_weights(p.group.max() + 1, 300, i).astype(float), p.group.max() + 1
            e = {}
            for m in 'ab':
                right = np.stack([np.bincount(p.group, y == p.y_true, g) for y in p.y_pred(m)])
                e[m] = Estimate({m: right @ w/(np.bincount(p.group) @ w)}, g, len(p.clips))
            low, high = e['a'].interval()
            inside += low <= a <= high
            alarms += (e['a'] - e['b']).p_value() < .05
        print(f'  {kind:42} {inside/n:7.1%}   {alarms/n:6.1%}')


if __name__ == '__main__':
    ap = argparse.ArgumentParser()
    ap.add_argument('--small', action='store_true')
    ap.add_argument('--coverage', action='store_true')
    a = ap.parse_args()
    coverage() if a.coverage else size(a.small)
