"What the runner, the site and the checks share: errors, atomic files, and reading a project's notebooks."
import ast, hashlib, json, os, re, shutil, subprocess, sys, tempfile
from configparser import ConfigParser
from pathlib import Path
from kinetics_dance.core.text import for_terminal

ROOT = Path(__file__).resolve().parent.parent
NUMBERED = re.compile(r'\d\d_')       # a stage of the study: nbs/05_comparison.ipynb
IN_WING = re.compile(r'\w+/\d\d_')   # how something is built: nbs/video/02_reading.ipynb
STAGES = 'stages'
# The layers of the house, low to high: a module imports from its own wing (lower numbers) and from
# layers before its own. All but the stages are wings: folders of nbs/, sub-packages of the library.
LAYERS = ['core', 'video', 'synthetic', 'clips', 'download', 'loading', 'models', 'evaluation',
          'training', 'deploy', STAGES, 'study']


class UserError(Exception):
    "A mistake of the user: one line on stderr, exit code 2."


def main(f):
    "Run `f()` as a command: a `UserError` is one line on stderr and exit code 2"
    try: sys.exit(f())
    except UserError as e:
        print(for_terminal(f'error: {e}', keep='\n'), file=sys.stderr)
        sys.exit(2)


def sha(x): return hashlib.sha256(x if isinstance(x, bytes) else x.encode()).hexdigest()[:20]


def write_atomic(path, data):
    "Write `data` (text or bytes) under a temporary name, then rename: readers see the old file or the new one"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    tmp.write_bytes(data if isinstance(data, bytes) else data.encode())
    os.replace(tmp, path)


def write_json(path, obj): write_atomic(path, json.dumps(obj, indent=1, ensure_ascii=False) + '\n')


def read_json(path, default=None):
    try: return json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError): return default


def settings(root):
    "The project's settings.ini (`lib_name`, `requirements`, …)"
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


def pins(root):
    "{package: version} that make up the environment of `make report`, as the lock has them"
    lock = root/'locks'/'report.txt'
    text = lock.read_text(encoding='utf-8') if lock.exists() else ''
    return dict(re.findall(r'^([\w.-]+)==([^\s;]+)', text, re.M))


def study_files(root):
    "Study files; a preregistration (`<name>.prereg.yaml`) beside one is none"
    return sorted(p for p in (root/'studies').glob('*.yaml') if not p.stem.endswith('.prereg'))


def source(cell): return ''.join(cell['source'])


def load_nb(path):
    "A notebook as a plain dict"
    nb = read_json(path)
    if nb is None: raise UserError(f'{path}: not a readable notebook')
    return nb


def code_cells(nb, injected=False):
    "Code cells, without the one that papermill injects unless `injected`"
    return [c for c in nb['cells'] if c['cell_type'] == 'code'
            and (injected or 'injected-parameters' not in c['metadata'].get('tags', []))]


def layer(stem):
    "Which layer a notebook belongs to: the wing it lies in, or `stages`"
    wing, _, name = stem.rpartition('/')
    return wing or STAGES


def wings(root):
    "Names of the folders of nbs/ that hold numbered notebooks, the lowest layer first"
    found = {p.parent.name for p in (root/'nbs').glob('*/[0-9][0-9]_*.ipynb')}
    return sorted(found, key=lambda w: (LAYERS.index(w) if w in LAYERS else len(LAYERS), w))


def notebooks(root):
    """{stem: path} of the project. The stem is the path below nbs/ without its ending (`05_comparison`,
    `video/02_reading`); in the order of the layers, and the home page last."""
    nbs = root/'nbs'
    found = [p for p in (*nbs.glob('[0-9][0-9]_*.ipynb'), *nbs.glob('*/[0-9][0-9]_*.ipynb'), nbs/'index.ipynb')]
    found = {p.relative_to(nbs).with_suffix('').as_posix(): p for p in found if p.exists()}
    place = {w: i for i, w in enumerate(LAYERS)}
    def order(stem): return stem == 'index', place.get(layer(stem), len(LAYERS)), stem
    return {s: found[s] for s in sorted(found, key=order)}


def default_exp(nb):
    "The module that a notebook exports to (`video.reading`), or None"
    found = (re.search(r'^#\| *default_exp +(\S+)', source(c), re.M) for c in code_cells(nb))
    return next((m[1] for m in found if m), None)


def module_file(root, lib, module):
    "The file of a module of the library: `video.reading` is <lib>/video/reading.py"
    return (root/lib).joinpath(*module.split('.')).with_suffix('.py')


def declared(nb):
    "{name: default} of a notebook's `parameters` cell; only literals can be set from outside"
    names = {}
    for c in nb['cells']:
        if 'parameters' not in c['metadata'].get('tags', []): continue
        for st in ast.parse(source(c)).body:
            target = st.targets[0] if isinstance(st, ast.Assign) else getattr(st, 'target', None)
            if isinstance(target, ast.Name) and st.value is not None: names[target.id] = ast.literal_eval(st.value)
    return names


def exported(root):
    "{file below the library: bytes} of the library as the notebooks say it is, exported in a copy so that the tree stays as it is"
    lib = settings(root)['lib_name']
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        shutil.copy(root/'settings.ini', tmp)
        shutil.copytree(root/'nbs', tmp/'nbs', ignore=shutil.ignore_patterns('.*', '*.mp4'))
        (tmp/lib).mkdir()
        env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}   # nbdev does not export when it is set
        if (root/lib/'__init__.py').exists(): shutil.copy(root/lib/'__init__.py', tmp/lib)
        p = subprocess.run([sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()'],
                           cwd=tmp, env=env, capture_output=True, text=True)
        if p.returncode: raise UserError('nbdev_export failed: ' + (p.stderr.strip().splitlines() or ['?'])[-1])
        return {f.relative_to(tmp/lib).as_posix(): f.read_bytes() for f in sorted((tmp/lib).rglob('*.py'))}
