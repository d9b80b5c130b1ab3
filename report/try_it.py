"""The page *Try it yourself*: the study's own models run in the reader's browser, by onnxruntime-web.

Everything the page needs lies in the site as scripts, because a page that is opened from a folder may load those and
nothing else: the runtime, and what it reads as compressed bytes in a text. They are loaded when the reader asks.

The runtime is fetched once into the cache (`KINETICS_DANCE_CACHE`, or ~/.cache/kinetics_dance); `KINETICS_DANCE_ONNXRUNTIME_WEB=no`
keeps a machine from fetching it. For another version: `npm view onnxruntime-web version dist.integrity` says what `VERSION` and
`INTEGRITY` have to be, and tests/test_try_it.py whether it gives the same answers."""
import base64, contextlib, gzip, hashlib, io, json, os, re, shutil, subprocess, sys, tarfile, tempfile, urllib.request
from pathlib import Path
from kinetics_dance.core.text import for_html, for_markdown, visible
from kinetics_dance.models.registry import MODELS, model_title
from . import gallery
from .common import read_json, sha, write_atomic
from .untrusted import raw

HERE = Path(__file__).parent
PAGE, FOLDER = 'try-it', '_static/try'
VERSION = '1.30.0'
INTEGRITY = 'q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='   # sha512, as npm has it
REGISTRY = 'https://registry.npmjs.org'
LARGEST = 25_000_000       # bytes of all that the page may load
GUESSES = 1                # clips of a class to guess, besides the one to shuffle


class NoPage(Exception):
    "Why this machine cannot make the page"


class NoModels(Exception):
    "Why the models of a study cannot run in a browser: the page says so"


def cache(): return Path(os.environ.get('KINETICS_DANCE_CACHE') or Path.home()/'.cache/kinetics_dance')/'onnxruntime-web'


def is_whole(data): return base64.b64encode(hashlib.sha512(data).digest()).decode() == INTEGRITY


def download():
    "The package's archive: by npm, which knows of mirrors and proxies, where there is one"
    name = f'onnxruntime-web-{VERSION}.tgz'
    with tempfile.TemporaryDirectory() as tmp, contextlib.suppress(OSError, subprocess.SubprocessError):
        if npm := shutil.which('npm'):
            subprocess.run([npm, 'pack', f'onnxruntime-web@{VERSION}', '--ignore-scripts', '--silent', '--fetch-retries=1'],
                           cwd=tmp, capture_output=True, timeout=300)
            return (Path(tmp)/name).read_bytes()
    with urllib.request.urlopen(f'{REGISTRY}/onnxruntime-web/-/{name}', timeout=60) as r: return r.read()


def archive():
    "onnxruntime-web as npm has it, from the cache or fetched once; its hash is checked each time"
    at = cache()/f'onnxruntime-web-{VERSION}.tgz'
    def missing(why): return NoPage(f'onnxruntime-web {VERSION} cannot be had: {why}')
    try:
        if at.is_file() and is_whole(data := at.read_bytes()): return data
        if os.environ.get('KINETICS_DANCE_ONNXRUNTIME_WEB') == 'no':
            raise missing('KINETICS_DANCE_ONNXRUNTIME_WEB=no, so it is not fetched')
        data = download()
    except OSError as e: raise missing(' '.join(str(e).split())) from e
    if not is_whole(data): raise missing('what was fetched is not the file that npm signs for')
    with contextlib.suppress(OSError): write_atomic(at, data)     # a cache that cannot be written is no reason to stop
    return data


def weights(folder): return [p for m in MODELS for p in sorted((folder/'models'/m).glob('seed*/model.safetensors'))]


def ready(folder):
    "What of a study's page may change without the study: fetches the runtime where it is missing, and says whether it is there"
    if not (kept := weights(folder)): return 'no models'
    try: archive()
    except NoPage: return 'no runtime'
    return ' '.join(f'{p.parent} {p.stat().st_size} {p.stat().st_mtime_ns}' for p in kept)


def classic(module):
    "The runtime as a script that any page may load: a module is not loaded from a folder"
    found = re.search(r'export\{([^}]*)\};?\s*(//# sourceMappingURL=\S*)?\s*$', module)
    names = dict(reversed(x.split(' as ')) for x in found[1].split(',')) if found else {}
    if not {'InferenceSession', 'Tensor', 'env'} <= set(names): raise NoPage(f'the module of onnxruntime-web {VERSION} is not as expected')
    body = module[:found.start()].replace('import.meta.url', 'document.baseURI')
    banner, _, body = body.partition('*/') if body.startswith('/*!') else ('/* onnxruntime-web, MIT licence ', '', body)
    return f"{banner}*/\n(() => {{{body};globalThis.ort = {{{', '.join(f'{k}: {names[k]}' for k in ('InferenceSession', 'Tensor', 'env'))}}};}})();\n"


def runtime():
    "(script, WebAssembly) of onnxruntime-web"
    with tarfile.open(fileobj=io.BytesIO(archive())) as tar:
        script, wasm = (tar.extractfile(f'package/dist/{n}').read() for n in ('ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'))
    return classic(script.decode('utf-8')), wasm


def part(name, data):
    "A script that hands `data` to the page, compressed"
    return f'tryIt.put({json.dumps(name)},"{base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()}");\n'


def models(folder):
    "[(name, folder, config)] of a study's own models, the first training run of each, that all look at the same frames"
    found = {}
    for m in MODELS:
        for p in sorted((folder/'models'/m).glob('seed*'), key=lambda p: (len(p.name), p.name)):
            c = read_json(p/'config.json')
            if c and (p/'model.safetensors').is_file(): found.setdefault(m, (p, c))
    seen = [json.dumps([c.get(k) for k in ('frames', 'crop', 'classes', 'clip_seconds')]) for _, c in found.values()]
    return [(m, p, c) for (m, (p, c)), s in zip(found.items(), seen) if s == seen[0]]


def exported(m, at, folder):
    "The ONNX graph of a model, exported again when its weights change"
    import kinetics_dance.deploy.export as export
    key = sha(b'\0'.join(p.read_bytes() for p in (at/'model.safetensors', at/'config.json', Path(export.__file__))))
    out = folder/'.site/try'/f'{m}-{key}.onnx'
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        for old in out.parent.glob(f'{m}-{"?"*20}.onnx'): old.unlink()
        with contextlib.redirect_stdout(io.StringIO()): export.export_model(at, 'onnx', out)
    return out.read_bytes()


def graphs(found, folder, room):
    "[(name, config, script)] of the models that fit, and why the others do not"
    ready, why = [], []
    for m, at, c in found:
        size = (at/'model.safetensors').stat().st_size
        if size > room: why.append(f'the {model_title(m)} weighs {size/1e6:.0f} MB'); continue
        try: text = part(f'model-{m}', exported(m, at, folder))
        except Exception as e:
            if isinstance(e, ImportError) or 'kinetics_dance[export]' in str(e): raise NoPage(' '.join(str(e).split())) from e
            why.append(f'the {model_title(m)} cannot be exported ({" ".join(str(e).split())[:200]})'); continue
        if len(text) > room: why.append(f'the {model_title(m)} weighs {len(text)/1e6:.0f} MB'); continue
        room -= len(text)
        ready.append((m, c, text))
    return ready, why


def predictions(folder, m, probe=''):
    import pandas as pd
    files = sorted((folder/'predictions'/m/probe).glob('seed*.parquet'))
    return [t[t.split == 'test'].reset_index(drop=True) for t in map(pd.read_parquet, files)]


def rivals(folder, classes):
    "{class: the one that it is told from}: its pair where the study has pairs, else the class it is most taken for by the first model"
    pairs = [p['classes'] for p in (read_json(folder/'known.json') or {}).get('pairs', [])]
    res = {a: b for p in pairs for a, b in (p, p[::-1]) if {a, b} <= set(classes)}
    for m in MODELS:
        if not (runs := predictions(folder, m)): continue
        mean = runs[0].groupby('label')[[f'p_{c}' for c in classes]].mean()
        for c in mean.index: res.setdefault(c, mean.loc[c].drop(f'p_{c}').idxmax()[2:])
    return {c: res.get(c) or next(k for k in classes if k != c) for c in classes}


def told_apart(folder, m, rival, probe=''):
    "{mean, low, high}: how often a model prefers the class to its rival; 95 % interval over uploads, of these training runs. None: not asked"
    import numpy as np
    from kinetics_dance.evaluation.intervals import upload_weights
    runs = predictions(folder, m, probe)
    if not runs: return None
    group = np.unique(runs[0].group, return_inverse=True)[1]
    right = np.zeros(len(group))
    for t in runs:
        mine, other = (np.array([r[f'p_{k}'] for r, k in zip(t.to_dict('records'), ks)]) for ks in (t.label, t.label.map(rival)))
        right += ((mine > other) + .5*(mine == other))/len(runs)
    w = upload_weights(group.max() + 1).astype(float)
    means = (np.bincount(group, right) @ w)/(np.bincount(group) @ w)
    low, high = np.percentile(means[1:], [2.5, 97.5])
    return dict(mean=float(means[0]), low=float(low), high=float(high))


def clips(folder, config):
    "([rows to shuffle, one of each class], [rows to guess]): clips of the test split whose frames are stored"
    import pandas as pd
    t = pd.read_csv(folder/'clips.csv', dtype={'clip_id': str, 'group': str})
    t = t[(t.status == 'ok') & (t.split == 'test') & t.label.isin(config['classes'])]
    t = t[[(folder/f'frames/{c}.npy').is_file() for c in t.clip_id]].sort_values('clip_id', kind='stable')
    shown = [r for _, rows in gallery.pick(folder) for r in rows if r['clip_id'] in set(t.clip_id)]
    rest = t[~t.clip_id.isin([r['clip_id'] for r in shown])]
    missing = [k for k in t.label.unique() if k not in {r['label'] for r in shown}]
    shown += t[t.label.isin(missing)].groupby('label').head(1).to_dict('records')
    return shown, rest.groupby('label').head(GUESSES).to_dict('records')


def pixels(folder, rows, crop):
    "Bytes of all stored frames of some clips `(n,N,h,w,3)`, the part that the models see; and N"
    import numpy as np
    out = []
    for r in rows:
        x = np.load(folder/f"frames/{r['clip_id']}.npy", mmap_mode='r', allow_pickle=False)
        if x.ndim != 4: raise NoModels('its frames are stored as JPEG, and the page wants pixels')
        top, left = ((n - c + 1)//2 for n, c in zip(x.shape[1:3], crop))
        out.append(np.ascontiguousarray(x[:, top:top + crop[0], left:left + crop[1]]))
    if len({x.shape for x in out}) > 1: raise NoModels('its clips are stored with different numbers of frames')
    return b''.join(x.tobytes() for x in out), len(out[0]) if out else 0


def material(folder):
    "({name of a file: its text}, what the page has to know): all that is loaded on a click"
    from kinetics_dance.video.samplers import spread
    found = models(folder)
    if not found: raise NoModels('none of its models is kept')
    script, wasm = runtime()
    config = found[0][2]
    if len(config['classes']) < 2: raise NoModels('it has a single class')
    shown, guessed = clips(folder, config)
    if not shown: raise NoModels('no frames of its test clips are kept')
    data, stored = pixels(folder, shown, config['crop'])
    if stored < config['frames']: raise NoModels('fewer frames are stored than a model sees')
    files = {'runtime.js': script, 'wasm.js': part('wasm', wasm), 'clips.js': part('clips', data), 'guess.js': part('guess', pixels(folder, guessed, config['crop'])[0])}
    ready, why = graphs(found, folder, LARGEST - sum(map(len, files.values())))
    if not ready: raise NoModels('; '.join(why) + f'; all that the page loads may be {LARGEST/1e6:.0f} MB')
    files |= {f'model-{m}.js': text for m, _, text in ready}
    rival = rivals(folder, config['classes'])
    scores = [dict(title=model_title(m), still=told_apart(folder, m, rival, 'frames_1'), clip=told_apart(folder, m, rival)) for m, *_ in ready]
    index, sizes = {c: i for i, c in enumerate(config['classes'])}, {k: len(v) for k, v in files.items()}
    def row(r): return [index[r['label']], index[rival[r['label']]]]
    return files, dict(classes=[visible(c.replace('_', ' ')) for c in config['classes']], frames=config['frames'], crop=list(config['crop']),
                       box=[config['stored']['height'], config['stored']['width']], seconds=float(config['clip_seconds']), stored=stored,
                       at=spread(stored, config['frames'], [.5])[0].tolist(), clips=[row(r) for r in shown], guesses=[row(r) for r in guessed],
                       models=[dict(name=m, title=model_title(m), order=m != 'per_frame') for m, *_ in ready], scores=scores, sizes=sizes, left_out=why)


def page(study, about, rendered):
    "MyST of the page"
    text = (HERE/'try_it.md').read_text(encoding='utf-8')
    mb = sum(v for k, v in about['sizes'].items() if k != 'guess.js')/1e6
    knows = 'These models were trained on rendered dancers and know nothing else: of a video of people they say something, and it means nothing.' if rendered else \
            'These models know the classes of this study and nothing else: one of them is their answer to any video.'
    fill = dict(study=for_markdown(study.replace('_', ' ')), size=f'{mb:.1f}', knows=knows, frames=about['frames'], seconds=f"{about['seconds']:g}", version=VERSION,
                left_out='Left out: ' + for_markdown('; '.join(about['left_out'])) + '.' if about['left_out'] else '')
    for k, v in fill.items(): text = text.replace('{{' + k + '}}', str(v))
    html = re.compile(r'^<!-- html -->\n(.*?)\n<!-- end -->$', re.S | re.M)
    data = json.dumps(about, ensure_ascii=False, separators=(',', ':'))
    return html.sub(lambda m: raw(m[1].replace('{{data}}', for_html(data))), text)


def make(root, study, folder, src):
    "Write the page and its files into the sources of a site; the page's name, or None where there is nothing to show. Says why on stderr"
    if not weights(folder): return None
    try: files, about = material(folder)
    except NoPage as e:
        print(f'no page "Try it yourself": {e}', file=sys.stderr)
        return None
    except NoModels as e:
        write_atomic(src/f'{PAGE}.md', f'# Try it yourself\n\nThe models of this study do not run in a browser: {for_markdown(str(e))}.\n')
        return PAGE
    for name, text in files.items(): write_atomic(src/FOLDER/name, text)
    for name in ('try_it.js', 'try_it.css'): write_atomic(src/FOLDER/name, re.sub('^ +', '', (HERE/name).read_text(encoding='utf-8'), flags=re.M))     # no text goes over lines
    write_atomic(src/f'{PAGE}.md', page(study, about, (folder/'known.json').exists()))
    return PAGE


def invite(home):
    "The link that stands first on the home page"
    first = next((i for i, c in enumerate(home['cells']) if c['cell_type'] == 'markdown'), 0)
    text = f'**[Try it yourself]({PAGE}.md)**: reverse a clip, and see which models notice. They run in your browser.'
    home['cells'].insert(first + 1, dict(cell_type='markdown', metadata={}, id='try-it', source=text))
