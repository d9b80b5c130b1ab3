"""Do the intervals of a cross-validated study keep their promise? Classifiers that learn from people that they share.

    python bench/folds.py [--studies 1000] [--only NAME] [--write]

A data-generating process of its own, which nothing else here uses. A clip is a point: where its class lies, moved by the person (a part that all views of the person share, and a part of each), by how this person does this class, and by noise. Two models see two views of the
same clip that are alike in distribution, so that they are equal on average, and different on each clip; a training run of a model looks at a part of the features, drawn by chance. Both are ridge classifiers and are really trained, on each fold's training part (one fold is
tested, the next one validates), so that what a person teaches comes back in all folds that learned from him. In each of six kinds of studies it counts how often the 95 % interval of the accuracy contains what the recipe gives on average over people, training sets and runs (the mean of an
own set of studies), and how often the interval of the difference of the two models contains 0, by four methods: every fold and run an independent sample (the usual way); people as the sample, folds sharing nothing (c = 0); the library's (c as in `TRAINING_SHARE`); and Nadeau and
Bengio's (c = 1). `--write` puts the table into nbs/pages/folds.md, which the site shows."""
import argparse, sys, time
from pathlib import Path
import numpy as np
from scipy.stats import t as student

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BASE = dict(groups=20, classes=6, folds=5, dims=12, ridge=.1, apart=1.2, person=.7, manner=.6, noise=1., seen=.9, runs=3, one_class=False)
KINDS = {
    '9 people, once in each of 10 classes, leave one out': dict(groups=9, classes=10, folds=9),
    '20 people, 6 classes, 5 folds': {},
    '60 people, 6 classes, 10 folds': dict(groups=60, folds=10),
    '150 uploads of one class each, 5 folds': dict(groups=150, one_class=True),
    '12 people, hardly more clips than features, 6 folds': dict(groups=12, classes=4, folds=6, dims=40, ridge=.001),
    '12 people who differ much, leave one out': dict(groups=12, folds=12, person=1.5),
}


def make_clips(w, rng, means):
    "(labels, people, folds, two views of the clips) of a study"
    if w['one_class']:
        of = np.arange(w['groups']) % w['classes']
        group = np.repeat(np.arange(w['groups']), 2)
        y, fold = of[group], (np.arange(w['groups'])//w['classes'] % w['folds'])[group]
    else:
        group, y = np.repeat(np.arange(w['groups']), w['classes']), np.tile(np.arange(w['classes']), w['groups'])
        fold = (np.arange(w['groups']) % w['folds'])[group]
    def draw(*shape): return rng.normal(size=(*shape, w['dims']))
    person, noise, views = draw(w['groups']), draw(len(y)), []
    for _ in range(2):
        of_person = w['person']*(person + draw(w['groups']))[group]/2**.5
        manner = w['manner']*draw(w['groups'], w['classes'])[group, y]
        views.append(means[y] + of_person + manner + w['noise']*(noise + draw(len(y)))/2**.5)
    return y, group, fold, views


def cross_validate(w, rng, x, y, fold):
    "Right or wrong, (S,N), of ridge classifiers that look at a part of the features, drawn for each run and fold"
    right = np.zeros((w['runs'], len(y)), bool)
    for s in range(w['runs']):
        for k in range(w['folds']):
            part = x[:, rng.permutation(w['dims'])[:int(w['seen']*w['dims'])]]
            train, test = (fold != k) & (fold != (k + 1) % w['folds']), fold == k
            middle = part[train].mean(0)
            a, target = part[train] - middle, np.eye(w['classes'])[y[train]]
            weights = np.linalg.solve(a.T @ a/len(a) + w['ridge']*np.eye(a.shape[1]), a.T @ (target - target.mean(0))/len(a))
            right[s, test] = ((part[test] - middle) @ weights + target.mean(0)).argmax(1) == y[test]
    return right


def independent(right, fold):
    "95 % interval of a mean of folds and runs, each of them taken for an independent sample"
    x = np.array([[r[fold == k].mean() for k in range(fold.max() + 1)] for r in right.astype(float)]).ravel()
    reach = student.ppf(.975, len(x) - 1)*x.std(ddof=1)/len(x)**.5
    return x.mean() - reach, x.mean() + reach


METHODS = 'folds x runs', 'c = 0', 'ours', 'c = 1'


def kind(name, studies, seed=0):
    "One row of the table"
    from dataclasses import replace
    from bench.coverage import estimate
    from kinetics_dance.evaluation.intervals import shared_training
    w, rng = BASE | KINDS[name], np.random.default_rng([seed, 1])
    means = w['apart']*np.random.default_rng([seed, 2]).normal(size=(w['classes'], w['dims']))
    factors = dict(zip(METHODS[1:], (1., shared_training(w['folds']), shared_training(w['folds'], 1.))))
    found, inside = [], {m: [] for m in METHODS}
    for _ in range(studies):
        y, group, fold, views = make_clips(w, rng, means)
        _, cells = np.unique([group, y], axis=1, return_counts=True) # clips of each person and class
        cells = float((cells**2).sum()/len(y)**2)
        a, b = (cross_validate(w, rng, x, y, fold) for x in views)
        ea, eb = (replace(estimate(m, x, group), cells=cells) for m, x in zip('ab', (a, b)))
        found.append((ea.value, eb.value - ea.value))
        gap = independent(b.astype(float) - a, fold)
        inside[METHODS[0]].append((*independent(a, fold), *gap))
        for m, f in factors.items():
            one, two = replace(ea, shared=f), replace(eb, shared=f)
            inside[m].append((*one.interval(), *(two - one).interval()))
    truth = np.mean([x for x, _ in found])
    def covers(m):
        low, high, below, above = np.transpose(inside[m])
        return float(((low <= truth) & (truth <= high)).mean()), float(((below <= 0) & (0 <= above)).mean())
    return dict(name=name, accuracy=truth, **{m: covers(m) for m in METHODS})


def table(rows, studies):
    "As the page shows it"
    pct = lambda x: f'{100*x:.1f} %'
    error = 2*(.05*.95/studies)**.5
    bold = lambda x: pct(x) if .93 - error <= x <= .97 + error else f'**{pct(x)}**'
    lines = ['| kind of study | accuracy | accuracy: ours | difference: folds × runs | c = 0 | ours | c = 1 |', '|---|---|---|---|---|---|---|']
    for r in rows:
        lines.append(f"| {r['name']} | {pct(r['accuracy'])} | {bold(r['ours'][0])} | " + ' | '.join(bold(r[m][1]) for m in METHODS) + ' |')
    return '\n'.join(lines)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('--studies', type=int, default=1000)
    ap.add_argument('--only', default='')
    ap.add_argument('--seed', type=int, default=0)
    ap.add_argument('--write', action='store_true', help='write the table into the page of the site')
    a = ap.parse_args()
    rows = []
    for name in KINDS:
        if a.only not in name: continue
        t = time.perf_counter()
        rows.append(r := kind(name, a.studies, a.seed))
        print(f"{name:55} accuracy {r['accuracy']:.3f}; covered " + '; '.join(f'{m} {x:.1%} and {d:.1%}' for m, (x, d) in ((m, r[m]) for m in METHODS)) + f'  ({time.perf_counter() - t:.0f} s)', flush=True)
    page = ROOT/'nbs/pages/folds.md'
    if a.write and not a.only:
        before, _, rest = page.read_text(encoding='utf-8').partition('<!-- table -->')
        after = rest.partition('<!-- /table -->')[2]
        page.write_text(f'{before}<!-- table -->\n\n{table(rows, a.studies)}\n\n{a.studies:,} studies of each kind, seed {a.seed}; bold is outside of 93 to 97 % by more than two standard errors of the simulation.\n\n<!-- /table -->{after}', encoding='utf-8')


if __name__ == '__main__': main()
