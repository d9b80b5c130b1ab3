"The answer of a study in one figure and one sentence, for README: `python -m report.answer demo`. What it needs is kept beside the figure."
import argparse, hashlib, json
from kinetics_dance.core.text import for_figure, for_markdown
from .common import ROOT, UserError, main, read_json, write_json
from .results import NAMES, name, pct

COLOURS, MARKS = ['#0173b2', '#de8f05', '#029e73', '#cc78bc', '#ca9161'], 'osD^v'   # of the other figures


def digest(report, record):
    "What README says of a study, from its report and its run record"
    models = {m: dict(pretraining=r.get('pretraining'), seeds=len(r['seeds']), accuracy=r['accuracy'], shuffled=r.get('probes', {}).get('shuffled'))
              for m, r in report['models'].items()}
    triples = {m: {k: {x: v[k][x] for x in ('mean', 'low', 'high')} for k in ('accuracy', 'shuffled') if v[k]} for m, v in models.items()}
    order = sorted(models, key=lambda m: (m != 'per_frame', list(NAMES).index(m) if m in NAMES else 9, m))
    return dict(study=report['study'], n_test=report['n_test'], n_uploads=report['n_uploads'], ceiling=report['ceiling'],
                models={m: dict(seeds=models[m]['seeds'], **triples[m]) for m in order},
                failed=[f"{name(c['model'])}: {c['check']}" for c in report.get('known_answer') or [] if not c['passes']],
                checks=len(report.get('known_answer') or []), finished=(record.get('finished') or '')[:10],
                machine=f"{(record.get('machine') or {}).get('cores', '?')} CPU cores" if not (record.get('machine') or {}).get('gpu') else record['machine']['gpu'])


def stamp(answer): return hashlib.sha256(json.dumps(answer, sort_keys=True).encode()).hexdigest()[:16]


def spoken_of(a):
    "What the intervals are about: a model that was trained once says nothing about its recipe"
    once = [name(m) for m, v in a['models'].items() if v['seeds'] < 2]
    if not once: return 'intervals of 95 % over uploads and training runs'
    who = 'each of them' if len(once) == len(a['models']) else 'the ' + ', the '.join(map(for_markdown, once))
    return f'intervals of 95 % over uploads; trained once: {who}, so this is about these trained models and not about their recipes'


def sentence(a):
    "The answer in words; every number out of the digest"
    def of(m, k='accuracy'): return a['models'][m][k]
    said = [f"the {for_markdown(name(m))} is right on **{pct(of(m)['mean'])}** [{100*of(m)['low']:.1f}, {100*of(m)['high']:.1f}]" for m in a['models']]
    text = f"On {a['n_test']} test clips of rendered dancers: " + '; '.join(said) + f' ({spoken_of(a)}).'
    if a['ceiling']: text += f" A model that looks at one frame at a time cannot be expected to pass {pct(a['ceiling'])} here, because the classes come in pairs that share every picture."
    if all('shuffled' in v for v in a['models'].values()):
        text += ' With the frames shuffled, the same weights reach ' + ', '.join(pct(of(m, 'shuffled')['mean']) for m in a['models']) + '.'
    if a['checks']:
        text += (f" All {a['checks']} checks of the known answer pass." if not a['failed'] else
                 f" **{len(a['failed'])} of {a['checks']} checks of the known answer did not pass ({'; '.join(map(for_markdown, a['failed']))}), so none of this counts.**")
    return text


def in_a_line(report):
    "The answer for a terminal, or None where a report holds no accuracies"
    models = (report or {}).get('models')
    if not models or not all(isinstance(m, dict) and 'accuracy' in m for m in models.values()): return None
    order = sorted(models, key=lambda m: (m != 'per_frame', m))
    said = ', '.join(f"{name(m, models)} {pct(models[m]['accuracy']['mean'])}" for m in order)
    checks = report.get('known_answer') or []
    failed = sum(not c['passes'] for c in checks)
    if failed: said += f'; {failed} of {len(checks)} checks of the known answer did not pass, so none of this counts'
    elif checks: said += f'; all {len(checks)} checks of the known answer pass'
    return f"accuracy on {report['n_test']} test clips: {said}" if report.get('n_test') else said


def caption(a):
    seeds = sorted({v['seeds'] for v in a['models'].values()})
    return (f"Study *{for_markdown(a['study'])}*, {a['n_test']} test clips of {a['n_uploads']} uploads, {' or '.join(map(str, seeds))} training runs a model, {for_markdown(a['machine'])}, {a['finished']}. "
            'Full: frames in their order; hollow: the same weights, frames shuffled. Bars: 95 % intervals' + (' of these trained models.' if min(seeds) < 2 else '.'))


def alt(a):
    return 'Accuracy of ' + ', '.join(f"{for_markdown(name(m))} {pct(v['accuracy']['mean'])}" + (f" (frames shuffled {pct(v['shuffled']['mean'])})" if 'shuffled' in v else '')
                                      for m, v in a['models'].items()) + (f"; at most {pct(a['ceiling'])} for single frames" if a['ceiling'] else '')


def draw(a, path):
    "The figure, on a white card, so that it can be read on a dark page, too"
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    plt.rcParams.update({'font.size': 12, 'font.family': 'DejaVu Sans'})
    fig, ax = plt.subplots(figsize=(7.6, 1.8 + .72*len(a['models'])), layout='constrained', facecolor='white')
    for i, (m, v) in enumerate(a['models'].items()):
        c, mark, x = COLOURS[i % 5], MARKS[i % 5], v['accuracy']
        if 'shuffled' in v:
            y = v['shuffled']
            ax.plot([y['low'], y['high']], [i + .24]*2, color=c, lw=1.6, alpha=.7, solid_capstyle='butt')
            ax.plot(y['mean'], i + .24, mark, mfc='white', mec=c, mew=1.8, ms=8)
        ax.plot([x['low'], x['high']], [i - .08]*2, color=c, lw=3.5, solid_capstyle='butt')
        ax.plot(x['mean'], i - .08, mark, color=c, ms=10)
        left = x['mean'] > .85
        ax.annotate(pct(x['mean']), (x['low'] if left else x['high'], i - .08), xytext=(-9 if left else 9, 0), textcoords='offset points',
                    va='center', ha='right' if left else 'left', color='#222222', fontweight='bold')
    if a['ceiling']:
        ax.axvline(a['ceiling'], color='#555555', ls='--', lw=1.4, zorder=0)
        ax.annotate('the most that single frames can give', (a['ceiling'], 1), xycoords=('data', 'axes fraction'), xytext=(0, 4), textcoords='offset points',
                    ha='center', va='bottom', fontsize=11, color='#555555')
    ax.plot([], [], 'o', color='#555555', ms=8, label='frames in their order')
    ax.plot([], [], 'o', mfc='white', mec='#555555', mew=1.8, ms=8, label='frames shuffled, same weights')
    fig.legend(loc='outside lower right', ncols=2, frameon=False, fontsize=11, handletextpad=.3)
    ax.set(yticks=range(len(a['models'])), yticklabels=[for_figure(name(m)) for m in a['models']], ylim=(len(a['models']) - .4, -.55), xlim=(0, 1.02),
           xlabel='share of test clips that is right')
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(axis='x', color='#e5e5e5', lw=.8)
    ax.set_axisbelow(True)
    tmp = path.with_name(f'.{path.name}')
    fig.savefig(tmp, dpi=150, format='png', facecolor='white', metadata={'Software': None, 'Description': stamp(a)})
    tmp.replace(path)
    plt.close(fig)


def update(root, study='demo', runs='runs'):
    "Draw the figure of a study anew where its report says something else; None where it was not run"
    report, record = read_json(root/runs/study/'report.json'), read_json(root/runs/study/'record.json') or {}
    if not report: return None
    a, folder = digest(report, record), root/'nbs/images'
    if a == read_json(folder/'answer.json') and drawn(folder/'answer.png') == stamp(a): return False
    folder.mkdir(parents=True, exist_ok=True)
    draw(a, folder/'answer.png')
    write_json(folder/'answer.json', a)
    return True


def drawn(path):
    "Of which answer a figure was drawn, as its file says"
    from PIL import Image
    try:
        with Image.open(path) as im: return im.info.get('Description')
    except OSError: return None


def run():
    ap = argparse.ArgumentParser(prog='python -m report.answer', description=__doc__.split(':')[0])
    ap.add_argument('study', nargs='?', default='demo', help='a study that was run (default demo)')
    a = ap.parse_args()
    new = update(ROOT, a.study)
    if new is None: raise UserError(f'study {a.study!r}: not run yet; `make report STUDY={a.study}` runs it')
    print('nbs/images/answer.png: ' + ('drawn' if new else 'up to date'))


if __name__ == '__main__': main(run)
