"Pages of the site that are no notebooks: prose, the list of names, the run record, the licence, and the pages that gather others."
import ast, json, re
from pathlib import Path
import yaml
from kinetics_dance.core.text import for_markdown
from .bridge import page, prose
from .common import UserError, layer, module_file, wings
from .results import code, table

# prose pages in the order of the sidebar; what is not named here comes after these
GUIDES, REFERENCE = ['own_videos', 'kinetics', 'kinetics_rehearsal', 'published', 'cluster', 'real_files', 'real_motion', 'real_videos', 'folds', 'threats'], ['glossary', 'citation', 'changelog']


def lead(s):
    "A page with its summary, the quoted paragraph under the title, set as such"
    m = re.match(r'(# .+\n)\n?> (.+(?:\n> ?.+)*)\n', s)
    return f"{m[1]}\n:::{{div}} lead\n{re.sub(chr(10) + '> ?', ' ', m[2])}\n:::\n" + s[m.end():] if m else s


def prose_pages(root, taken):
    "{page: (path, MyST)} of nbs/pages/*.md; a page whose name a notebook has already is called `<name>-guide`"
    res = {}
    for p in sorted((root/'nbs/pages').glob('*.md')):
        s = p.read_text(encoding='utf-8')
        if m := re.match(r'---\n(.*?)\n---\n', s, re.S):      # Quarto's title block
            head = yaml.safe_load(m[1]) or {}
            about = head.get('description') or head.get('subtitle')
            s = f"# {head.get('title', p.stem)}\n" + (f'\n:::{{div}} lead\n{about}\n:::\n' if about else '') + s[m.end():]
        else: s = lead(s)
        s = re.sub(r'(!\[[^\[\]]*\]\()\.\./images/', r'\1images/', s)        # the pages of the site lie beside the pictures
        if not s.lstrip().startswith('# '): raise UserError(f'{p.relative_to(root)}: must begin with a title, `# …`')
        res[p.stem + '-guide' if p.stem in taken else p.stem] = (p, prose(s, 'pages'))
    return res


def links(s, names, root, here=Path('.')):
    """Links to prose pages by their names on the site; links to other files of the repository, which are not on it, become plain text.
    `names`: {stem, or path from the root: page}."""
    def f(m):
        text, path, anchor = m[1], m[2], m[3] or ''
        p, inside = Path(path), re.sub(r'^(\.{1,2}/)+', '', path)
        stem = {'LICENSE': 'licence', 'CITATION.cff': 'citation'}.get(p.name, p.stem if p.suffix == '.md' else None)
        if inside in names: return f'[{text}]({names[inside]}.md{anchor})'
        if inside == 'README.md': return f'[{text}](../nbs/index.ipynb)'
        if stem in names: return f'[{text}]({names[stem]}.md{anchor})'
        if p.suffix == '.ipynb': return m[0]
        if text.startswith('`'): return text
        return f'{text} (`{inside}`)' if (root/inside).exists() else m[0]
    if '](' not in s: return s
    def outside_code(part): return re.sub(r'(?<!!)\[([^\[\]]+)\]\((?!\w+:|#|_)([\w./-]+)(#[\w.-]+)?\)', f, part)
    return ''.join(p if i % 2 else outside_code(p) for i, p in enumerate(re.split(r'(^```.*?^```[^\n]*$)', s, flags=re.M | re.S)))


def one_line(doc): return ' '.join((doc or '').strip().split('\n\n')[0].split())


def public(path):
    "[(name, kind, first line of its docstring)] of the public names of a module, in the order of its source; methods that are patched in, too"
    tree = ast.parse(path.read_text(encoding='utf-8'))
    names = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'), [])
    res, seen = [], set()
    for n in tree.body:
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            on = next((n.args.args[0].annotation for d in n.decorator_list if ast.unparse(d).startswith('patch') and n.args.args), None) if not isinstance(n, ast.ClassDef) else None
            full = f'{ast.unparse(on)}.{n.name}' if on is not None else n.name
            if n.name in names or on is not None and not n.name.startswith('_'):
                res.append((full, 'class' if isinstance(n, ast.ClassDef) else 'method' if on is not None else 'function', one_line(ast.get_docstring(n))))
                seen.add(full)
        elif isinstance(n, (ast.Assign, ast.AnnAssign)):
            targets = n.targets if isinstance(n, ast.Assign) else [n.target]
            for t in targets:
                for e in t.elts if isinstance(t, ast.Tuple) else [t]:
                    if (k := getattr(e, 'id', None)) in names and k not in seen: res.append((k, 'constant', '')); seen.add(k)
    return res + [(k, 'name', '') for k in names if k not in seen]


def api_page(root, lib, modules, known):
    "Every public name by module. `modules`: {module: stem of its notebook}; `known`: labels of what is documented"
    out = ['# API index', ':::{div} lead\nEvery public name of the library, by module, with the first line of what is said about it where it is made.\n:::']
    text = lambda s: re.sub(r'([|<\[\]*_$])', r'\\\1', s) if '`' not in s else s.replace('|', '\\|')
    for mod, stem in modules.items():
        f = module_file(root, lib, mod)
        names = public(f)
        if not names: continue
        out += [f'## {mod.replace("_", " ")}', f'`from {lib}.{mod} import …` · {text(one_line(ast.get_docstring(ast.parse(f.read_text(encoding="utf-8")))))} · [how it is made]({page(stem)}.ipynb)']
        rows, plain = [], []
        for n, kind, doc in names:
            label = f'api-{page(stem)}-{n.lower()}'
            link = f'[`{n}`](#{label})' if label in known else f'`{n}`'
            if kind in ('constant', 'name'): plain.append(f'`{n}`')
            else: rows.append((link, text(doc)))
        if rows: out.append(table(['name', 'what it does'], rows))
        if plain: out.append('Constants: ' + ', '.join(plain) + '.')
    return '\n\n'.join(out) + '\n'


def looks_at(looks):
    "MyST of the list of looks at the test set"
    if not looks: return ''
    rows = [(for_markdown(x['when'].replace('T', ' ')[:16]), code(x['predictions']), code(x['prereg']) if x['prereg'] else 'none', 'yes' if x['new'] else 'seen before',
             '**changed**' if x['changed'] else '', for_markdown(', '.join(f'{m} {n}' for m, n in x['runs'].items()))) for x in looks]
    return ('## Looks at the test set\n\nEvery comparison of predictions that were not compared before is a look; what was decided before the first is in the preregistration, whose hash is given.\n\n'
            + table(['when (UTC)', 'predictions', 'preregistration', 'new', '', 'runs'], rows))


def record_page(rec):
    "MyST of the run record"
    def val(v): return code(json.dumps(v, ensure_ascii=False))
    def plain(rows): return [(for_markdown(k), for_markdown(v)) for k, v in rows]
    def dur(s): return f'{int(s)//60} min {int(s)%60:02d} s' if s >= 60 else f'{s:.1f} s'
    commit = code(rec['commit'][:12]) + (', with changes that were not committed' if rec['dirty'] else '') if rec['commit'] else 'not in a git repository'
    rows = [(f'[{s}]({page(s)}.ipynb)', rec['cells'][s], dur(t)) for s, t in rec['seconds'].items()]
    names = dict(cpu='Processor', cores='Cores', memory_gb='Memory (GB)', python='Python', platform='System', gpu='GPU')
    return '\n\n'.join([
        '# Run record', ':::{div} lead\nWhat was run, with what, on which machine: enough to run it again.\n:::',
        f"Study {code(rec['study'])}, finished {for_markdown((rec['finished'] or '?').replace('T', ' ')[:16])} UTC. Commit: {commit}.",
        '## Parameters', table(['parameter', 'value'], [(code(k), val(v)) for k, v in rec['parameters'].items()]),
        '## Durations', table(['notebook', 'code cells', 'time'], [*rows, ('**all**', sum(rec['cells'].values()), dur(sum(rec['seconds'].values())))]),
        'Three model notebooks may run side by side, so the study takes less time than the sum.',
        looks_at(rec.get('looks') or []),
        '## Machine', table(['what', 'which'], plain((names.get(k, k), v) for k, v in rec['machine'].items())),
        '## Versions', table(['package', 'version'], plain(rec['versions'].items())),
        ':::{dropdown} Everything else that is pinned\n' + table(['package', 'version'], plain(rec['other_versions'].items())) + '\n:::' if rec['other_versions'] else '']) + '\n'


def licence_page(root):
    f = root/'LICENSE'
    return f'# Licence\n\n:::{{div}} lead\nApache 2.0 for everything here. Annotations of Kinetics are DeepMind\'s, CC BY 4.0; videos belong to those who uploaded them.\n:::\n\n```text\n{f.read_text(encoding="utf-8").strip(chr(10))}\n```\n' if f.exists() else None


def wing_pages(root, stems, heads):
    """{page: MyST} of the wings, the lowest first: what nbs/<wing>/index.md says, and its notebooks in the order to read
    them. `heads`: {stem: (title, summary)}"""
    res = {}
    for wing in wings(root):
        f = root/'nbs'/wing/'index.md'
        own = [s for s in stems if layer(s) == wing]
        if not f.exists(): raise UserError(f'{f.relative_to(root)} is missing: say there what the notebooks beside it are for')
        if not own: continue
        rows = [(f'[{heads[s][0]}]({page(s)}.ipynb)', heads[s][1].replace('|', '\\|')) for s in own]
        text = lead(f.read_text(encoding='utf-8'))
        res[wing] = '\n\n'.join([prose(text, wing).rstrip(), table(['notebook', 'in one sentence'], rows),
                                 toctree('', [page(s) for s in own])])
    return res


def toctree(caption, pages): return '```{toctree}\n:hidden:\n' + (f':caption: {caption}\n' if caption else '') + '\n' + '\n'.join(pages) + '\n```'
