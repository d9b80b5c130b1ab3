"""Run the tests that a change can affect: `make test CHANGED=1`.

What changed is what git says of the working tree against the place where the branch left main. A
test file is chosen when its code, the code of what it imports from tests/, report/, rehearsal/ and
bench/, or a definition of the library that it reaches is another one than there, or when it reads a
file that changed. A notebook is chosen the same way. Definitions are followed as freshness follows
them (core/dependencies): comments, docstrings and moved code change nothing. What cannot be mapped
runs everything."""
import ast, io, os, re, subprocess, sys, tarfile, tempfile, textwrap
from functools import cache, cached_property
from pathlib import Path
from kinetics_dance.core.dependencies import closure, plain_source
from .common import (NUMBERED, ROOT, UserError, code_cells, load_nb, main, notebooks, settings,
                     source)

HELPERS = 'tests', 'report', 'rehearsal', 'bench'
EVERYTHING = {'constraints.txt', 'settings.ini', 'setup.py'}       # all tests stand on these
SITE = '_site'                                                     # made of all of nbs/
NOTEBOOKS = 'tests/test_notebooks.py'
PRELOADED = 'tests/preloaded.py'    # names modules to import them early, and needs none of them


def git(*args, root=ROOT):
    "Output of a git command, or None where it fails"
    try: p = subprocess.run(['git', *args], cwd=root, capture_output=True)
    except OSError: return None
    return p.stdout if p.returncode == 0 else None


def merge_base(root):
    "The commit where this branch left main; None where there is no repository or no main"
    for name in ('main', 'origin/main', 'master', 'origin/master'):
        if found := git('merge-base', 'HEAD', name, root=root): return found.decode().strip()
    return None


def changed_files(root, base):
    "Paths that differ from `base` in the working tree, files that git does not know yet among them"
    tracked = git('diff', '--name-only', '--no-renames', '-z', base, root=root)
    other = git('ls-files', '--others', '--exclude-standard', '-z', root=root)
    names = (tracked or b'') + (other or b'')
    return sorted({os.fsdecode(n) for n in names.split(b'\0') if n})


def extract(root, commit, to):
    "The files of a commit, below a folder"
    data = git('archive', '--format=tar', commit, root=root)
    if data is None: raise UserError(f'git archive {commit}: failed')
    with tarfile.open(fileobj=io.BytesIO(data)) as tar: tar.extractall(to, filter='data')


@cache
def nodes(tree): return list(ast.walk(tree))


@cache
def strings(tree):
    "Constant texts of some code; an f-string with a word in the place of each value"
    found = []
    for node in nodes(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else '_' for v in node.values)
            found.append(''.join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


@cache
def parsed(text):
    try: return ast.parse(textwrap.dedent(text))
    except (SyntaxError, ValueError): return None


def below_root(node):
    "The path of `ROOT/'a'/'b'`, as far as it is given in letters; None for anything else"
    if isinstance(node, ast.Name): return '' if node.id == 'ROOT' else None
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)): return None
    left = below_root(node.left)
    known = isinstance(node.right, ast.Constant) and isinstance(node.right.value, str)
    return left if left is None or not known else f'{left}/{node.right.value}'.strip('/')


class Version:
    "The project as it was at a commit, or as it is now"
    def __init__(self, root, library=True):
        "`library`: can what is reached of the library have changed?"
        self.root, self.library, self.lib = root, library, settings(root)['lib_name']
        self.modules = {}       # name → path, of Python files outside of the library
        for folder in HELPERS:
            for p in sorted((root/folder).glob('*.py')):
                self.modules[p.stem if folder in ('tests', 'bench') else f'{folder}.{p.stem}'] = p

    @cached_property
    def conftest(self):
        "[(names that a statement binds, names that it uses, its text, does it always count?)]"
        path, found = self.root/'tests/conftest.py', []
        for node in ast.parse(path.read_text(encoding='utf-8')).body if path.exists() else ():
            binds = {n.id for n in ast.walk(node)
                     if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            if hasattr(node, 'name'): binds = {node.name}
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                binds = {(a.asname or a.name).split('.')[0] for a in node.names}
            text = ast.unparse(node)
            always = not binds or 'autouse' in text or any(n.startswith('pytest_') for n in binds)
            found.append((binds, used_names(node), text, always))
        return found

    def fixtures(self, tree):
        "The part of conftest.py that a test file uses"
        used = used_names(tree)
        while True:
            chosen = [c for c in self.conftest if c[3] or c[0] & used]
            more = set().union(used, *(c[1] for c in chosen))
            if more == used: return '\n'.join(c[2] for c in chosen)
            used = more

    def imported(self, tree):
        "Names of the modules outside of the library that some code imports, or names in a text"
        names = list(strings(tree))
        for node in nodes(tree):
            if isinstance(node, ast.Import): names += [a.name for a in node.names]
            if not isinstance(node, ast.ImportFrom): continue
            base = 'report' if node.level else node.module or ''        # only report/ is a package
            if node.level and node.module: base += f'.{node.module}'
            names += [base, *(f'{base}.{a.name}' for a in node.names)]
        return {n for n in names if n in self.modules} - {'conftest'}

    def texts(self, path):
        "{what: code} of a test file, of what it uses of conftest.py, and of what these import"
        def file(p): return p.relative_to(self.root).as_posix(), p.read_text(encoding='utf-8')
        texts, todo = {}, [file(path)]
        while todo:
            name, text = todo.pop()
            if name in texts or not (tree := parsed(text)): continue
            texts[name] = text
            if name.startswith('tests/test_'):
                todo.append((f'conftest.py of {name}', self.fixtures(tree)))
            todo += [file(self.modules[m]) for m in self.imported(tree)]
        return texts

    @cache
    def reached(self, text):
        "{definition: hash} of the library that some code reaches, or code that it holds as text"
        if not parsed(text): return {}
        inner = []
        for s in strings(parsed(text)):
            if not re.search(rf'\b{self.lib}\b', s) or re.fullmatch(r'[\w.:]+', s): continue
            inner += [s] if parsed(s) else re.findall(rf'\b{self.lib}(?:\.\w+)+', s)
        # what a module imports may be used by who imports the module
        imports = [n for n in nodes(parsed(text)) if isinstance(n, ast.ImportFrom) and n.module]
        passed = [f'{n.module}:{a.name}' for n in imports for a in n.names
                  if n.module.split('.')[0] == self.lib]
        return closure([text, *inner, *passed], self.root, self.lib)

    @cache
    def plain(self, text): return plain_source([text], self.root, self.lib)[0]

    def reads(self, texts):
        "Paths below the project that some code names, '' for all of them"
        found = set()
        for name, text in texts.items():
            tree = parsed(text)
            if name.startswith(('tests/test_', 'conftest.py of')):
                if "'ls-files'" in text or re.search(r'ROOT\.r?glob', text): found.add('')
                if re.search(r'\bnotebooks\(', text): found.add('nbs')
            found |= {p for n in nodes(tree) if (p := below_root(n))}
            paths = (re.sub(r'^(\.\./)+', '', s) for s in strings(tree))
            found |= {s.split('*')[0].strip('/') for s in paths
                      if re.fullmatch(r'[\w.-]+(/[\w.*-]+)+|[\w-]+\.\w+', s)}
        found -= set(HELPERS)       # which of their files are imported is known
        return {p for p in found if not p or p.startswith(SITE) or (self.root/p).exists()}

    def code(self, path):
        "({what it depends on: code or hash}, paths that it reads) of a test file"
        texts = self.texts(path)
        reads = self.reads(texts)
        if any(r.startswith(('studies', SITE)) for r in reads):     # it runs the stages' notebooks
            for stem in notebooks(self.root):
                if NUMBERED.match(stem) or stem == 'index': texts |= self.cells(stem)
        if any(r.startswith(SITE) for r in reads): reads.add('nbs')
        if path.name == Path(NOTEBOOKS).name: reads.discard('nbs')      # a test for each
        return self.parts(texts), reads

    def cells(self, stem):
        "{what: code} of a notebook: cells that are Python, those with magics, and nbdev's directives"
        cells = [source(c) for c in code_cells(load_nb(notebooks(self.root)[stem]))]
        marks = [line for c in cells for line in c.splitlines() if line.startswith('#|')]
        return {stem: '\n'.join(c for c in cells if parsed(c)),
                f'{stem} (magics)': '%\n' + '\n'.join(c for c in cells if not parsed(c)),
                f'{stem} (directives)': '%\n' + '\n'.join(marks)}

    def notebook(self, stem):
        "As `code`, of a notebook"
        texts = self.cells(stem)
        return self.parts(texts), self.reads({stem: texts[stem]})

    def parts(self, texts):
        "{what: its plain code, or the hash of a definition}"
        found = {name: self.plain(text) for name, text in texts.items()}
        for name, text in texts.items():
            if self.library and name != PRELOADED: found |= self.reached(text)
        return found

    def items(self):
        "{pytest's name of what can be chosen: function that gives its code}"
        tests = sorted(p for p in (self.root/'tests').glob('test_*.py'))
        found = {f'tests/{p.name}': (lambda p=p: self.code(p)) for p in tests}
        if (self.root/NOTEBOOKS).exists():
            for s in notebooks(self.root):
                found[f'{NOTEBOOKS}::test_notebook[{s}]'] = lambda s=s: self.notebook(s)
        return found


def used_names(node):
    "Names in some code: variables, arguments (fixtures) and words that may name a fixture"
    found = {s for s in strings(node) if s.isidentifier()}
    for n in nodes(node):
        if isinstance(n, ast.Name): found.add(n.id)
        elif isinstance(n, ast.arg): found.add(n.arg)
        elif isinstance(n, ast.ImportFrom) and n.module == 'conftest':
            found |= {a.name for a in n.names}
    return found


def differ(old, new):
    "Keys whose values differ, or that only one of two dictionaries has"
    return [k for k in {**old, **new} if old.get(k) != new.get(k)]


def choose(root, base_root, files):
    "({item: why}, reason to run everything or None, number of items)"
    library = any(f.endswith(('.py', '.ipynb')) for f in files)
    old, new = Version(base_root, library), Version(root, library)
    before, now, chosen, mapped = old.items(), new.items(), {}, set()
    for item, code in now.items():
        parts, reads = code()
        was = before[item]()[0] if item in before else {}
        why = [k.removeprefix(f'{new.lib}.') for k in differ(was, parts)] if was else ['new']
        near = {f for f in files for r in reads if r and (f == r or f.startswith(f'{r}/'))}
        mapped |= near | {f for f in files if f in parts or f in was}
        why += files if '' in reads else sorted(near)
        if why: chosen[item] = [*dict.fromkeys(why)]
    ours = re.compile(rf'{new.lib}/.+\.py|nbs/(\w+/)?\w+\.ipynb|tests/(conftest|test_\w+)\.py')
    everything = [f'{f} changed' for f in files if f in EVERYTHING]
    everything += [f'no test is known to depend on {f}' for f in files
                   if f not in mapped and not ours.fullmatch(f)]
    return chosen, everything[0] if everything else None, len(now)


def some(names, n):
    "The first of many names"
    more = f' and {len(names) - n} more' if len(names) > n else ''
    return ', '.join(names[:n]) + more


def tell(chosen, total, print=print):
    "What was chosen, and why, a line each"
    for item, why in chosen.items():
        name = re.sub(r'.*\[(.*)\]', r'notebook \1', item)
        print(f'  {name}: {some(why, 3)}')
    print(f'chosen: {len(chosen)} of {total} (files of tests, and notebooks)')


def run():
    root, args = ROOT, sys.argv[1:]
    base, everything, chosen = merge_base(root), None, {}
    if base is None: everything = 'this is no git repository with a branch main'
    else:
        files = changed_files(root, base)
        print(f"changed since {base[:9]}: {some(files, 6) or 'nothing'}")
        if not files: return 0
        with tempfile.TemporaryDirectory() as tmp:
            extract(root, base, tmp)
            chosen, everything, total = choose(root, Path(tmp), files)
    if everything: print(f'everything runs: {everything}')
    elif not chosen: print('no test depends on what changed')
    else: tell(chosen, total)
    if not everything and not chosen: return 0
    tests = [c for c in chosen if NOTEBOOKS not in chosen or not c.startswith(f'{NOTEBOOKS}::')]
    sys.stdout.flush()
    line = [sys.executable, '-m', 'pytest', *(['tests'] if everything else tests), *args]
    os.execv(sys.executable, line)


if __name__ == '__main__': main(run)
