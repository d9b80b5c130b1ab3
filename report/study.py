"Reading a study file: a flat YAML mapping of notebook parameters, checked before anything runs."
import difflib, importlib, inspect, sys, warnings
from pathlib import Path
import yaml
from kinetics_dance.core.text import for_terminal
from .common import NUMBERED, UserError, declared, load_nb, notebooks, settings, study_files


class _Loader(yaml.SafeLoader):
    "YAML that refuses a key given twice: the plain loader silently takes the last one"
    def construct_mapping(self, node, deep=False):
        seen = set()
        for k, _ in node.value:
            if k.value in seen: raise UserError(f'key {k.value!r} is given twice')
            seen.add(k.value)
        return super().construct_mapping(node, deep)


def _name(v): return {'str': 'text', 'bool': 'true or false', 'int': 'a whole number', 'float': 'a number', 'list': 'a list',
                      'tuple': 'a list', 'dict': 'a mapping', 'NoneType': 'null'}.get(type(v).__name__, type(v).__name__)


def mismatch(value, default):
    """What is wrong with `value` where the notebook's default is `default`, or None. A default of None accepts anything,
    `auto` and a number with a point accept a whole one; null is accepted only where the default is null."""
    if default is None or default == 'auto' and type(value) is int: return
    ok = {bool: bool, int: int, float: (int, float), tuple: list}.get(type(default), type(default))
    if isinstance(value, ok) and not (isinstance(value, bool) and not isinstance(default, bool)):
        kinds = {type(x) for x in default} if isinstance(default, (list, tuple)) else ()
        return next((f'in the list, {m}' for x in value if (m := mismatch(x, default[0]))), None) if len(kinds) == 1 else None
    hint = ''
    if isinstance(value, str) and isinstance(default, (int, float)):
        try: hint = f' (YAML reads {value} as text: write {float(value)!r})'     # 1e-3 has no point, so YAML 1.1 takes it for text
        except ValueError: pass
    return f'expected {_name(default)}, got {_name(value)} {value!r}{hint}'


def library_settings(root):
    "Does the library of a project declare its settings? Then it reads and checks study files, for every command alike"
    return (root/settings(root)['lib_name']/'study'/'settings.py').is_file()


def given(root, path, shown):
    "What a study file gives, as the library reads it"
    if str(root) not in sys.path: sys.path.insert(0, str(root))
    lib = importlib.import_module(f"{settings(root)['lib_name']}.study.settings")
    try: return lib.file_settings(path)
    except Exception as e:
        if type(e).__name__ != 'StudyError': raise
        raise UserError(str(e).replace(path.name, str(shown), 1)) from None


def parsed(path, shown):
    "A study file of a project without declared settings"
    try: params = yaml.load(path.read_text(encoding='utf-8'), _Loader)
    except UserError as e: raise UserError(f'{shown}: {e}') from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        mark = getattr(e, 'problem_mark', None)
        raise UserError(f"{shown}{f':{mark.line+1}' if mark else ''}: not valid YAML: {getattr(e, 'problem', None) or e}") from None
    params = {} if params is None else params
    if not isinstance(params, dict): raise UserError(f'{shown}: must be a mapping of `key: value` lines, not {_name(params)}')
    return params


def take_over(root, values):
    "Let a study have its folder, whatever the clips in it came from"
    importlib.import_module(f"{settings(root)['lib_name']}.data").check_origin(values, replace=True)


def checked(params, decl, path, shown):
    "Each key against the parameters cells of the notebooks"
    # a key counts as declared where a numbered notebook declares it: the others only follow
    owners = {k: {s: d[k] for s, d in decl.items() if k in d and NUMBERED.match(s)} for k in {k for d in decl.values() for k in d}}
    owners = {k: v for k, v in owners.items() if v}
    for k, v in params.items():
        if k not in owners:
            near = difflib.get_close_matches(str(k), owners, 1)
            raise UserError(f"{shown}: unknown key {k!r}; " + (f"did you mean {near[0]!r}?" if near else f"the notebooks declare: {', '.join(sorted(owners))}"))
        for stem, default in owners[k].items():
            if m := mismatch(v, default): raise UserError(f'{shown}: {k}: {m} (declared in {stem})')
    if params.get('study', path.stem) != path.stem:
        raise UserError(f"{shown}: study is {params['study']!r}, but the file is named {path.stem!r}: they must be the same")
    return params


def load_study(path, root, runs=None):
    "(name, {key: value}, {stem: declared parameters}) of the study file at `path`; raises `UserError`"
    path, shown = Path(path).resolve(), path
    if path.is_relative_to(root): shown = path.relative_to(root)
    if path.stem.endswith('.prereg'):
        raise UserError(f"{shown}: is a preregistration; the study that belongs to it is {path.stem.removesuffix('.prereg')}.yaml")
    if not path.is_file():
        known = ', '.join(p.stem for p in study_files(root)) or 'none'
        raise UserError(f'{shown}: no such study file (in studies/: {known})')
    decl = {}
    for stem, nb in notebooks(root).items():
        try: decl[stem] = declared(load_nb(nb))
        except (SyntaxError, ValueError) as e: raise UserError(f'{nb.relative_to(root)}: the parameters cell must hold plain literals: {e}') from None
    if library_settings(root): params = given(root, path, shown)
    else: params = checked(parsed(path, shown), decl, path, shown)
    params['study'] = path.stem
    if runs is not None: params['runs'] = str(runs)
    return path.stem, params, decl, str(shown)


def effective(params, decl, root):
    """Declared defaults under the study's own values: those of the library, or else of the first numbered notebook that has
    them"""
    if library_settings(root): return importlib.import_module(f"{settings(root)['lib_name']}.core.settings").defaults() | params
    both = {}
    for stem, d in decl.items():
        if NUMBERED.match(stem): both |= {k: v for k, v in d.items() if k not in both}
    return both | params


def check_values(params, decl, root, shown, trains=True):
    "Let the library check what only it knows: classes, paths, rows of a CSV (by the module that has a `check_study`, if one has)"
    lib = settings(root)['lib_name']
    found = (p for p in sorted((root/lib).rglob('*.py')) if 'def check_study' in p.read_text(encoding='utf-8'))
    module = next(('.'.join(p.relative_to(root/lib).with_suffix('').parts) for p in found), None)
    if not module: return
    if str(root) not in sys.path: sys.path.insert(0, str(root))
    check = importlib.import_module(f'{lib}.{module}').check_study
    args = (effective(params, decl, root), root)[:len(inspect.signature(check).parameters)]        # it may not care where the project is
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter('always')
            check(*args)
        if trains and library_settings(root) and (device := args[0]['device']) != 'cpu':
            importlib.import_module(f'{lib}.training.learner').check_device(device)
    except Exception as e:
        if type(e).__name__ != 'StudyError': raise
        raise UserError(str(e) if str(e).startswith(shown) else f'{shown}: {e}') from None
    for line in dict.fromkeys(f'warning: {w.message}' for w in told if w.category.__name__ == 'StudyWarning'): print(for_terminal(line), file=sys.stderr)
