"""Pages of results: one a study that was run, from what it left in runs/<study>/ or from what of it is kept in results/<study>/."""
import json, re
from urllib.parse import quote
from . import gallery
from kinetics_dance.core.text import for_html, for_markdown
from kinetics_dance.models.registry import CONTROLS, MODELS, PRETRAINING_MARKS, model_title, pretraining_mark
from .common import read_json
from .untrusted import raw

NAMES = {m: model_title(m) for m in MODELS | CONTROLS} | {'average': 'all models, averaged', 'oracle': 'the best of them for each clip'}
PROBES = dict(shuffled='frames shuffled', reversed='frames backwards', frozen='one frame repeated', halved='every second frame', consecutive='neighbouring frames',
              half_speed='half speed', double_speed='double speed', one_replaced='one frame of another class',
              mixed='every second frame of another clip of the class')
# figure: (caption, what is seen by one who cannot see it)
FIGURES = dict(
    accuracy=('Accuracy on the test clips with 95 % intervals (bars) and single training runs (hollow). Dashed, where it is known: '
              'the most that single frames can give.', 'One row a model: a dot with a bar for its interval.'),
    differences=('Paired differences between models: full dots are real; a grey bar spans what could not be told from zero.',
                 'One row a pair of models: a dot with a bar for its interval, and a vertical line at zero.'),
    gain=('Which classes need time: points won over the per-frame vote, class by class, with 95 % intervals.', 'One row a class, a dot with a bar for each model with time.'),
    decomposition=('What time buys: points that more frames (grey), seeing them together (orange) and their order (blue) add, with 95 % intervals.',
                   'Staircases of grey, orange and blue bars over the share of clips that is right.'),
    probes=('Accuracy when the frames are tampered with.', 'One row a way to tamper, a dot with a bar for each model.'),
    frames=('Accuracy against the number of frames.', 'A line a model, from one frame to many.'),
    confusion=('What is taken for what: two models, and their difference.', 'Three square tables of coloured cells, true classes down, answers across.'),
    reliability=('Are they as sure as they are right? On the dotted line they would be.', 'Dots for each model around a diagonal.'),
    cost=('Accuracy against cost; on the grey line nothing cheaper is as good.', 'Two panels, one dot a model.'),
    budget=('What time buys with other budgets: points won over the vote of the same budget, against epochs and against the share of the training clips.', 'A line a model, with bars for intervals.'),
    learning=('How the models learned.', 'Curves of loss and accuracy over epochs, one a training run.'))


def name(m, models=()):
    mark = pretraining_mark((models.get(m) or {}).get('pretraining') if models else '')
    return NAMES.get(m, m.replace('_', ' ')) + f' {mark}'.rstrip()


def named(text, models):
    "A sentence of the report with the names that readers know, as Markdown"
    known = '|'.join(sorted(map(re.escape, models), key=len, reverse=True))
    return for_markdown(re.sub(known, lambda m: name(m[0], models), text) if models else text)


def studies(root, runs, study):
    """{study: folder with its report.json}: the one the site is of, then what was run here, then what is kept. The smoke study is
    there to test the road, and has a page only on a site of its own."""
    def whole(f): return any(isinstance(m, dict) and 'accuracy' in m for m in ((read_json(f) or {}).get('models') or {}).values())
    here = root/runs/study/'report.json'
    others = [p for folder in (root/runs, root/'results') for p in sorted(folder.glob('*/report.json')) if p.parent.name != 'smoke']
    res = {}
    for p in [here, *others]:
        if p.parent.name not in res and whole(p): res[p.parent.name] = p.parent
    return res


def stamp(root, runs, study):
    "Bytes that change when a page of results should"
    files = [f for s, d in studies(root, runs, study).items() for f in (d/'report.json', d/'clips.csv', d/'media/gallery.json', root/'results'/s/'media/gallery.json', *sorted((d/'figures').glob('*')))]
    return [f.read_bytes() if f.suffix in ('.json', '.csv') else f'{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}'.encode() for f in files if f.exists()]


def page_name(study): return 'results-' + re.sub(r'[^a-z0-9]+', '-', study.lower())


def table(head, rows): return '\n'.join(['| ' + ' | '.join(map(str, r)) + ' |' for r in [head, ['---']*len(head), *rows]])


def code(x):
    "Markdown of a value as code, whatever is in it"
    return f'<code class="docutils literal notranslate">{for_markdown(x)}</code>'


def pct(x): return '' if x is None else f'{100*x:.1f} %'


def span(a, f=lambda x: f'{100*x:.1f}', unit=' %'):
    "A mean with its interval"
    if a is None or a.get('mean') is None: return ''
    ci = f" [{f(a['low'])}, {f(a['high'])}]" if a.get('low') is not None and a.get('high') is not None else ''
    return f"{f(a['mean'])}{unit}{ci}"


def figure(key, folder, media, label, words=None):
    "MyST of a figure of the study: the vector form if that is all drawing, else the picture"
    for ext in ('svg', 'png'):
        f = folder/'figures'/f'{key}.{ext}'
        if f.exists() and not (ext == 'svg' and f.stat().st_size > 250_000 and f.with_suffix('.png').exists()): break
    else: return ''
    cap, alt = words or FIGURES[key]
    return f'::::::{{float}} {cap}\n:name: results-{label}-{key}\n:kind: fig\n\n```{{image}} {media.save(f.read_bytes(), ext)}\n:alt: {alt}\n:class: plot\n```\n::::::'


def lead(r):
    "The first sentence of the page: how large the study was"
    seeds = max((len(m.get('seeds') or []) for m in r['models'].values()), default=0)
    n = len(r['models'])
    return f"{r['n_test']} test clips of {r['n_uploads']} uploads, {len(r['classes'])} classes, {n} model{'s'*(n > 1)}" + (f", {seeds} training run{'s'*(seeds > 1)} each" if seeds else '') + '.'


def scope(models):
    "What the intervals of a table are about"
    once = [name(m, models) for m, x in models.items() if len(x.get('seeds') or []) < 2]
    if not once: return 'Means over the training runs, with 95 % intervals over uploads and runs.'
    return (f"Means over the training runs, with 95 % intervals. Trained once: {', '.join(map(for_markdown, once))}; these intervals are over uploads only, "
            'and differences are between these trained models, not between recipes.')


def known(r, models):
    "The checks of the known answer, and what follows from them"
    checks = r.get('known_answer') or []
    if not checks: return 'The right answer of this study is not known beforehand, so there is nothing to check it against; ' \
                          'a study of rendered dancers has such checks.'
    bad = [c for c in checks if not c['passes']]
    verdict = f'**{len(bad)} of {len(checks)} checks fail, so none of the results counts.**' if bad else f':::{{admonition}} The study found its known answer\n:class: tip\nAll {len(checks)} checks pass.\n:::'
    num = lambda x: '' if x is None else f'{x:.3f}'
    rows = [(for_markdown(name(c['model'], models)), for_markdown(c['check']), num(c['value']), f"{num(c.get('low'))} to {num(c.get('high'))}", 'yes' if c['passes'] else '**no**') for c in checks]
    return verdict + '\n\n' + table(['model', 'check', 'found', '95 % interval', 'passes'], rows)


def selection(r, models):
    "Losses on valid of the learning rates that were tried"
    rows = r.get('selection') or []
    rates = sorted({x['lr'] for x in rows})
    cells = {(x['model'], x['lr']): ('diverged' if x['valid_loss'] is None else f"{x['valid_loss']:.3f}") + (' (chosen)' if x['chosen'] else '') + (', at the edge' if x['edge'] else '') for x in rows}
    return table(['loss on valid with', *(f'{x:g}' for x in rates)], [(for_markdown(name(m, models)), *(cells.get((m, x), '') for x in rates)) for m in dict.fromkeys(x['model'] for x in rows)]) if rows else ''


def costs(r, models):
    cols = [('parameters', 'parameters', lambda x: f'{x/1e6:.2f} M' if x >= 1e5 else f'{x:g}'), ('gflops_per_clip', 'GFLOP a clip', lambda x: f'{x:.2f}'), ('ms_per_clip', 'ms a clip', lambda x: f'{x:.1f}'),
            ('ms_decode', 'of it decoding', lambda x: f'{x:.1f}'), ('ms_forward', 'of it the network', lambda x: f'{x:.1f}'), ('device', 'on', for_markdown)]
    rows = r.get('costs') or []
    cols = [c for c in cols if any(x.get(c[0]) is not None for x in rows)]
    return table(['model', *(c[1] for c in cols)], [(for_markdown(name(x['model'], models)), *(f(x[k]) if x.get(k) is not None else '' for k, _, f in cols)) for x in rows]) if rows and cols else ''


def page(root, study, folder, media, downloads):
    "MyST of the page of results of one study"
    r = read_json(folder/'report.json')
    models, label = r['models'], re.sub(r'[^a-z0-9]+', '-', study.lower())
    best = max(models, key=lambda m: models[m]['accuracy']['mean'])
    fig = lambda k: figure(k, folder, media, label)
    two = lambda f: f'{f:.2f}'
    out = [f'# Results: {for_markdown(study.replace("_", " "))}', f':::{{div}} lead\n{lead(r)}\n:::']
    if r.get('notes'): out.append(':::{admonition} Note\n:class: note\n' + '\n\n'.join(named(x, models) for x in r['notes']) + '\n:::')
    ceiling = f" The most that a model of single frames can have here is **{pct(r['ceiling'])}**." if r.get('ceiling') else ''
    bad = [c for c in r.get('known_answer') or [] if not c['passes']]
    out += ['## The answer',
            bad and ':::{admonition} The study did not find its known answer\n:class: warning\n'
                    'Some [checks](#the-known-answer) fail, so none of its results counts.\n:::',
            f"The {for_markdown(name(best, models))} is right on **{span(models[best]['accuracy'])}** of the clips" +
            (f", the {name('per_frame', models)} on **{span(models['per_frame']['accuracy'])}**" if 'per_frame' in models and best != 'per_frame' else '') + '.' + ceiling,
            fig('accuracy'), '\n'.join(f'- {named(v, models)}' for v in r.get('verdicts') or [])]
    if found := gallery.find(root, study, folder):
        g, where = found
        pairs = any(c['differs'] for c in g['clips'])
        out += ['## What they saw', ('One clip of each class. Two that stand together show the same dancer: their film strips look alike, and only the film tells them apart.' if pairs else
                'One clip of each class.') + ' Films play when they are touched.', raw(gallery.show(g, where, media))]
    out += ['## Scores', scope(models),
            table(['model', 'accuracy', 'balanced', 'macro F1', 'log loss', 'calibration error', 'trained before on'],
                  [(for_markdown(name(m, models)), span(x['accuracy']), span(x.get('balanced_accuracy')), span(x.get('macro_f1'), two, ''), span(x.get('log_loss'), two, ''), span(x.get('calibration_error'), two, ''),
                    for_markdown(x.get('pretraining') or 'not said')) for m, x in sorted(models.items(), key=lambda kv: kv[1]['accuracy']['mean'])])]
    seen = {pretraining_mark(x.get('pretraining')) for x in models.values()}
    out += [f'{mark}: {what}; not to be compared with the others.' for mark, what in PRETRAINING_MARKS.items() if mark in seen]
    out += [fig('differences')]
    if r.get('gains') or fig('gain'): out += ['## Which classes need time?', fig('gain')]
    if parts := r.get('decomposition'):
        out += ['## What does time buy?', 'Points that each step adds: several frames that vote, the same frames seen together by a network that cannot know their order, their order. These networks are controls and stand in no verdict.',
                fig('decomposition'), table(['asked', 'by the', 'step', 'from', 'to', 'points'], [
                    (for_markdown(d['question']), for_markdown(name(d['ladder'], models)), d['step'], pct(d['start']), pct(d['end']), span(dict(mean=d['gain'], low=d['low'], high=d['high']), lambda x: f'{100*x:+.1f}', ''))
                    for d in parts]), fig('budget')]
    probes = list(dict.fromkeys(p for m in models.values() for p in m.get('probes') or {}))
    if probes:
        order = sorted(probes, key=lambda p: (p.startswith('frames_'), int(p[7:]) if p[7:].isdigit() else 0, p))
        word = lambda p: PROBES.get(p) or (f"{p[7:]} frame{'s'*(p != 'frames_1')}" if p.startswith('frames_') else p)
        out += ['## Frames tampered with', 'Accuracy of the same networks, not trained again, on clips whose frames were changed.', fig('probes') or fig('frames'),
                table(['model', 'as they are', *(for_markdown(word(p)) for p in order)], [(for_markdown(name(m, models)), pct(x['accuracy']['mean']), *(pct((x.get('probes') or {}).get(p, {}).get('mean')) for p in order)) for m, x in models.items()])]
    for title, key in (('What is taken for what', 'confusion'), ('Do they know what they do not know?', 'reliability')):
        if f := fig(key): out += [f'## {title}', f]
    if s := selection(r, models): out += ['## How the learning rates were chosen', 'Each model was tried with each rate for a few epochs; the smallest loss on valid decided, and no test clip took part.', s]
    if (c := costs(r, models)) or fig('cost'): out += ['## What an answer costs', c, fig('cost')]
    out += ['## The known answer', known(r, models)]
    leaks = {k.replace('_', ' '): v for k, v in (r.get('leaks') or {}).items()}
    if leaks: out += ['## Leaks between the splits', table(['looked for', 'found'], [(for_markdown(k), for_markdown(v)) for k, v in leaks.items()])]
    out += ['## Settings and files']
    if rec := read_json(folder/'record.json'):
        out += [':::{dropdown} Parameters of the study\n' + table(['parameter', 'value'], [(code(k), code(json.dumps(v, ensure_ascii=False))) for k, v in rec['parameters'].items()]) + '\n:::']
    files = ['report.json', *(f'tables/{f.name}' for f in sorted((folder/'tables').glob('*.csv')))]
    links = [f'<a href="{for_html(quote(downloads((folder/f).read_bytes(), label, f)))}" download>{for_markdown(f.split("/")[-1])}</a>' for f in files if (folder/f).exists()]
    out += ['Every number of this page, to take along: ' + ', '.join(links) + '.']
    return '\n\n'.join(x for x in out if x) + '\n'
