"""From nbdev to Sphinx: executed notebooks that nbdev has processed become notebooks that MyST-NB reads.

nbdev has taken hidden cells out and put `show_doc` after exports (rendered by `Api`, below). What is left is Quarto's
dialect, in which the notebooks are written so that `nbdev_docs` renders them too: each rule here maps one idiom of it to
MyST. Pictures and films leave the notebook for files of the site, so that pages stay small."""
import ast, base64, hashlib, inspect, io, posixpath, re
from pathlib import Path
import yaml
from fastcore.docments import MarkdownRenderer
from . import untrusted

EXT = {'image/png': 'png', 'image/jpeg': 'jpg', 'image/svg+xml': 'svg', 'image/webp': 'webp', 'image/gif': 'gif', 'video/mp4': 'mp4', 'video/webm': 'webm'}
PICTURES = ('image/svg+xml', 'image/png', 'image/jpeg')


def page(stem):
    "Name of a notebook's page: `00_data` is data.html, `video/02_reading` is video-reading.html"
    return re.sub(r'(^|/)\d\d_', r'\1', stem).replace('/', '-')


class Api(MarkdownRenderer):
    "What `show_doc` prints: an object of Sphinx's Python domain, linkable and searchable, with its docments as fields"
    def _repr_markdown_(self):
        dm, empty = dict(self.dm.dm), inspect.Parameter.empty
        ret = dm.pop('return', None) or {}
        def text(x):        # `Generator`, not `numpy.random._generator.Generator`
            return re.sub(r'\b(?:\w+\.)+(?=\w)', '', x if isinstance(x, str) else inspect.formatannotation(x) if x is not None else 'None')
        def par(n, p):
            name, typed, default = self.dm._fmt_param(n, {'kind': p.get('kind')}), p.get('anno', empty) not in (empty, type(None)), p.get('default', empty)
            d = '' if default is empty else getattr(default, '__name__', None) or repr(default)
            return name + (f": {text(p['anno'])}" if typed else '') + ((f' = {d}' if typed else f'={d}') if d else '')
        kind = 'class' if inspect.isclass(self.sym) else 'method' if '.' in self.nm else 'function'
        if kind == 'class' and '__init__' not in vars(self.sym): dm, sig = {}, ''             # a base class's signature is not ours to list
        else: sig = '(' + ', '.join(par(n, p) for n, p in dm.items()) + ')'
        docs = self.docs if self.sym.__doc__ else ''                                        # else Python offers `object`'s
        to = ret.get('anno', empty)
        to = f' -> {text(to)}' if to is not empty and kind != 'class' else ''
        fields = [f":param {n}: {' '.join(p['docment'].split())}" for n, p in dm.items() if p.get('docment')]
        if ret.get('docment') and kind != 'class': fields.append(f":returns: {' '.join(ret['docment'].split())}")
        return f'(api-{self.nm.lower()})=\n::::{{py:{kind}}} {self.nm}{sig}{to}\n\n{docs}\n\n' + '\n'.join(fields) + '\n::::'


class Media:
    "Files taken out of notebooks, named by their content, in `folder`; pages refer to them as `_static/media/…`"
    def __init__(self, folder): self.folder = Path(folder); self.folder.mkdir(parents=True, exist_ok=True)

    def save(self, data, ext):
        p = self.folder/f'{hashlib.sha256(data).hexdigest()[:16]}.{ext}'
        if not p.exists(): p.write_bytes(data)
        return f'_static/media/{p.name}'

    def picture(self, out):
        "MyST for an output that is a picture: an image, at the width that the notebook gave it"
        mime = next(m for m in PICTURES if m in out['data'])
        data = ''.join(out['data'][mime])
        url = self.save(data.encode() if 'svg' in mime else base64.b64decode(data), EXT[mime])
        size = out.get('metadata', {}).get(mime, {})
        return url, f":width: {size['width']}px\n" if 'width' in size else ''

    def poster(self, url):
        "First picture of a film, so that a page shows something before it loads any"
        import av
        try:
            with av.open(str(self.folder/Path(url).name)) as f: img = next(f.decode(video=0)).to_image()
        except (av.FFmpegError, StopIteration, IndexError): return ''
        buf = io.BytesIO(); img.save(buf, 'jpeg', quality=80)
        return f' poster="{self.save(buf.getvalue(), "jpg")}"'

    def extract(self, html):
        "HTML whose embedded media are files; films do not load before they are played, pictures not before they are seen"
        html = re.sub(r'data:([\w/+.-]+);base64,([\w+/=\s]+)', lambda m: self.save(base64.b64decode(m[2]), EXT[m[1]]) if m[1] in EXT else m[0], html)
        def film(m):
            url = re.search(r'src="?\'?(_static/media/[\w.]+)', m[0])
            kept = re.sub(r'\s(controls|loop|muted|playsinline|autoplay|preload|poster)(="[^"]*"|=\'[^\']*\'|=\w+)?(?=[\s>])', '', m[1])
            return f'<video controls loop muted playsinline preload="none"{self.poster(url[1]) if url else ""}{kept}>{m[2]}'
        html = re.sub(r'<video\b([^>]*)>(.*?</video>)', film, html, flags=re.S)
        return re.sub(r'<img (?![^>]*loading=)', '<img loading="lazy" ', html)


def directives(src):
    "({directive: value}, code) of a cell: the `#|` lines at its top are never shown"
    d, lines = {}, src.splitlines()
    while lines and (lines[0].startswith('#|') or not lines[0].strip()):
        k, _, v = lines.pop(0)[2:].strip().partition(':')
        v = v.strip()
        if k: d[k.strip()] = v[1:-1] if len(v) > 1 and v[0] == v[-1] and v[0] in '"\'' else v
    return d, '\n'.join(lines)


def callouts(s):
    "`::: {.callout-tip}` to an admonition, or to a dropdown where it is collapsed"
    def f(m):
        kind, attrs, body = m[1], m[2], m[3].strip('\n')
        title = (re.search(r'title="([^"]+)"', attrs) or [0, kind.title()])[1]
        if t := re.match(r'#+ (.+)\n+', body): title, body = t[1], body[t.end():]
        if 'collapse="true"' in attrs: return f':::{{dropdown}} {title}\n{body}\n:::'
        return f':::{{admonition}} {title}\n:class: {kind}\n{body}\n:::'
    return re.sub(r'^::: ?\{\.callout-(\w+)([^}]*)\}\n(.*?)^:::\s*$', f, s, flags=re.M | re.S)


def references(s, at=''):
    "Labels and references: `{#eq-x}`, `{#sec-x}`, `@fig-x`, `@tbl-x`, `@eq-x`, `@sec-x`; links between notebooks"
    s = re.sub(r'\$\$(.+?)\$\$\s*\{#(eq-[\w-]+)\}', r'$$\1$$ (\2)', s, flags=re.S)
    s = re.sub(r'^(#+ .+?)\s*\{#(sec-[\w-]+)\}\s*$', r'(\2)=\n\1', s, flags=re.M)
    ref = r'(?<![\w`])\[?@%s-([\w-]*\w)\]?'
    s = re.sub(ref % 'eq', r'Equation {eq}`eq-\1`', s)
    s = re.sub(ref % '(fig|tbl)', r'{numref}`\1-\2`', s)
    s = re.sub(ref % 'sec', r'[](#sec-\1)', s)
    return notebook_links(s, at)


def notebook_links(s, at=''):
    "Links to notebooks, which go by the names of their pages. `at`: folder of nbs/ that the text lies in"
    def f(m):
        stem = posixpath.normpath(posixpath.join(at, m[1])).removeprefix('nbs/').removeprefix('../nbs/')
        return f']({page(stem)}.ipynb' if re.fullmatch(r'(\w+/)?\d\d_\w+|index', stem) else m[0]
    return re.sub(r'\]\(((?:[\w.-]+/)*(?:\d\d_\w+|index))\.(?:ipynb|html)', f, s)


def page_links(s, base, stems):
    "Links that nbdev made of names of the library: `<base>/video/reading.html#x` leads to the page of that module"
    known = {re.sub(r'(^|/)\d\d_', r'\1', stem): stem for stem in stems}
    def f(m):
        name = page(known.get(m[1], m[1]))
        return f'#api-{name}-{m[2][1:]}' if m[2] else f'{name}.ipynb'
    return re.sub(re.escape(base) + r'/([\w/-]+)\.html(#[\w.-]+)?', f, s)


def prose(s, at='', split=re.compile(r'(^```.*?^```[^\n]*$|`[^`\n]+`)', re.M | re.S)):
    "Rules for text, applied outside code. `at`: folder of nbs/ that the text lies in"
    s = callouts(s)
    return ''.join(p if i % 2 else references(p, at) for i, p in enumerate(split.split(s)))


def _md(src): return dict(cell_type='markdown', metadata={}, source=src)


def without_warnings(text):
    "What a cell wrote to stderr, less Python's warnings (they name folders of the machine) and the folders of packages; the rest stays, loud"
    text = re.sub(r'^\S+\.py:\d+: \w*Warning: .*\n(?:  .*\n?)*', '', text, flags=re.M)
    return re.sub(r'(?:/[^\s:"\']+)?/site-packages/', '', text)


def outputs(outs, d, media, at=''):
    "Cells for what a code cell printed: (outputs that stay with the code, markdown that comes after it)"
    stay, floats = [], []
    label = d.get('label', '')
    for o in outs:
        data = o.get('data', {})
        if o.get('name') == 'stderr': o = {**o, 'text': without_warnings(''.join(o['text']))}
        if 'text' in o: o = {**o, 'text': untrusted.plain(''.join(o['text']))}
        html = ''.join(data.get('text/html', ''))
        if o.get('name') == 'stderr' and not ''.join(o.get('text', '')).strip(): continue
        if 'Turns off some styling' in html or (data and not any(''.join(v).strip() if isinstance(v, (str, list)) else v for v in data.values())): continue
        if any(m in data for m in PICTURES):
            url, width = media.picture(o)
            floats.append(f"```{{image}} {url}\n:alt: {d.get('fig-alt') or d.get('fig-cap') or 'output of the code above'}\n:class: plot\n{width}```")
        elif html:
            html = untrusted.clean(media.extract(re.sub(r'<style scoped>.*?</style>|\sborder="1"', '', html, flags=re.S)))
            if label: floats.append(untrusted.raw(html))
            else: o['data'] = {'text/html': html}; (floats.append(untrusted.raw(f'<div class="cell_output">{html}</div>')) if floats else stay.append(o))
        elif 'text/markdown' in data: floats.append(prose(untrusted.markdown(''.join(data['text/markdown'])), at))
        elif data: stay.append(o | dict(data={'text/plain': untrusted.plain(''.join(data.get('text/plain', '')))}))
        else: stay.append(o)
    if any('text/markdown' not in o.get('data', {}) for o in outs) and floats: stay = [o for o in stay if not _axes(o)]
    if label and floats:
        kind = 'tbl' if label.startswith('tbl') else 'fig'
        floats = [f'::::::{{float}} {d.get(kind + "-cap", "")}\n:name: {label}\n:kind: {kind}\n\n' + '\n\n'.join(floats) + '\n::::::']
    return stay, floats


def _axes(o): return re.match(r"[\[(<]?<?(Axes|Figure|matplotlib|Text\()", ''.join(o.get('data', {}).get('text/plain', '')))


def definitions(code):
    "Names, as `show_doc` has them, of what an exported cell defines"
    res = []
    for n in ast.parse(code).body:
        if not isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): continue
        on = next((n.args.args[0].annotation for d in n.decorator_list if ast.unparse(d).startswith('patch')), None)
        res.append((f'{ast.unparse(on)}.' if on else '') + n.name)
    return [r.lower() for r in res]


def in_order(cells, order):
    "nbdev documents what one cell exports last one first, and all but one of it after its source: back to the order of the module"
    res, place = [], {n: i for i, n in enumerate(order)}
    for c in cells:
        i = len(res)
        if 'api' in c:
            while i and (res[i-1].get('api') or c['api'] in res[i-1].get('defines', ())) and place.get(res[i-1].get('api'), 1e9) > place.get(c['api'], -1): i -= 1
        res.insert(i, c)
    return [{k: v for k, v in c.items() if k not in ('api', 'defines')} for c in res]


def to_myst(nb, stem, lib, media, base='', order=(), stems=()):
    "MyST-NB notebook of an executed notebook that nbdev has processed"
    cells, mod, at = [], None, stem.rpartition('/')[0]
    for c in nb['cells']:
        src, tags = ''.join(c['source']), c.get('metadata', {}).get('tags', [])
        if c['cell_type'] == 'raw':
            if not src.startswith('---'): continue
            fm = yaml.safe_load(src.strip().strip('-'))
            cells.append(_md(f"# {fm['title']}\n" + (f"\n:::{{div}} lead\n{prose(fm['description'], at)}\n:::" if fm.get('description') else '')))
            if mod := nb['metadata'].get('module'): cells.append(_md(f'```{{py:currentmodule}} {lib}.{mod}\n```'))
        elif c['cell_type'] == 'markdown':
            if 'AUTOGENERATED' in src: continue
            if base: src = page_links(src, base, stems)
            cells.append(_md(prose(src, at)))
        else:
            d, code = directives(src)
            outs = c.get('outputs', [])
            if code.startswith('show_doc(') or d.get('output') == 'asis':
                for o in outs:
                    text = ''.join(o.get('data', {}).get('text/markdown', '') or o.get('text', ''))
                    name = re.match(r'\(api-(\S+)\)=', text) if code.startswith('show_doc(') else None
                    cells.append(_md(re.sub(r'^\(api-', f'(api-{page(stem)}-', notebook_links(text, at)) if name else prose(text if code.startswith('show_doc(') else untrusted.markdown(text), at)))
                    if name: cells[-1]['api'] = name[1]
                continue
            if d.get('include') == 'false' or stem == 'index' and 'injected-parameters' in tags: continue
            stay, floats = outputs([] if d.get('output') == 'false' else outs, d, media, at)
            keep, prompt = [], d.get('code-summary')
            if 'injected-parameters' in tags: d['code-fold'], prompt = 'true', 'What this study sets'
            if d.get('echo') == 'false' or not code.strip(): keep.append('remove-input')
            elif d.get('code-fold') == 'true': keep.append('hide-input')
            meta = dict(tags=keep, mystnb=dict(code_prompt_show=prompt or 'Show the code', code_prompt_hide=prompt or 'Hide the code'))
            if stay or 'remove-input' not in keep:
                cells.append(dict(cell_type='code', metadata=meta, source=code, outputs=stay, execution_count=c.get('execution_count')))
                if prompt == 'Exported source': cells[-1]['defines'] = definitions(code)
            cells += map(_md, floats)
    cells = in_order(cells, order)
    for c in cells:        # labels belong to their notebook: two of them may both have a fig-history
        if c['cell_type'] == 'markdown':
            c['source'] = re.sub(r'(\{numref\}`|\{eq\}`|^:name: |\$\$ \(|^\(|\[\]\(#)((?:fig|tbl|eq|sec)-)', rf'\1{page(stem)}-\2', c['source'], flags=re.M)
    for i, c in enumerate(cells): c['id'] = f'cell-{i}'
    # `widgets` would make MyST-NB load scripts from another host
    return dict(cells=cells, metadata={k: v for k, v in nb['metadata'].items() if k in ('kernelspec', 'language_info')}, nbformat=4, nbformat_minor=5)


def check_links(nbs):
    "Keep links to documented objects that exist; one object documented twice is indexed once"
    text = lambda nb: (c for c in nb['cells'] if c['cell_type'] == 'markdown')
    known = {m for nb in nbs for c in text(nb) for m in re.findall(r'^\((api-[\w.-]+)\)=', c['source'], re.M)}
    seen = set()
    for nb in nbs:
        for c in text(nb):
            c['source'] = re.sub(r'\[(`[^`]+`)\]\(#(api-[\w.-]+)\)', lambda m: m[0] if m[2] in known else m[1], c['source'])
            if m := re.match(r'\((api-[\w.-]+)\)=\n(::::\{py:\w+\} ([\w.]+).*)', c['source']):
                # labels know no capitals: of a class `Workers` and a function `workers` the first one has it, and both are indexed
                if (m[1], m[3]) in seen: c['source'] = m[2] + '\n:no-index:' + c['source'][m.end():]
                elif m[1] in seen: c['source'] = m[2] + c['source'][m.end():]
                seen |= {m[1], (m[1], m[3])}
