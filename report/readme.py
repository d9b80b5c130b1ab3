"README.md from nbs/index.ipynb, without Quarto: `python -m report.readme`."
import re, sys
from pathlib import Path
from . import answer
from .bridge import directives
from .common import ROOT, load_nb, main, read_json, source, write_atomic

HIDDEN = {'hide', 'study', 'default_exp', 'export', 'exporti', 'exports'}


def callouts(s):
    "`::: {.callout-note}` to a blockquote, which GitHub shows as a note, a tip or a warning"
    def f(m):
        body = re.sub(r'^#+ (.+)', r'**\1**', m[3].strip())
        return f'> [!{m[1].upper()}]\n' + '\n'.join(f'> {l}'.rstrip() for l in body.splitlines())
    return re.sub(r'^::: ?\{\.callout-(\w+)([^}]*)\}\n(.*?)^:::\s*$', f, s, flags=re.M | re.S)


def links(s):
    "Links of a notebook in nbs/ as they are from the root: notebooks, pages, images; `../x` is x"
    s = re.sub(r'\]\((?!\w+:|#|/|\.\./)([\w./-]+)(#[\w.-]+)?\)', r'](nbs/\1\2)', s)
    return re.sub(r'\]\(\.\./', '](', s)


def found(root):
    "The committed figure of the answer, and the answer in a sentence"
    a = read_json(root/'nbs/images/answer.json')
    return None if a is None else f'{answer.sentence(a)}\n\n![{answer.alt(a)}](nbs/images/answer.png)\n\n{answer.caption(a)}'


def readme(root):
    "Text of README.md: title, summary, prose, and the code that is not hidden; no outputs, for notebooks are committed without"
    parts = ['<!-- Made from nbs/index.ipynb by `make readme`: edit that. -->']
    for i, c in enumerate(load_nb(root/'nbs/index.ipynb')['cells']):
        src = source(c).strip()
        if not src or 'injected-parameters' in c['metadata'].get('tags', []): continue
        if c['cell_type'] == 'markdown':
            # the title cell ends with `- key: value` lines for nbdev
            if src.startswith('# '): src = re.sub(r'^- [\w-]+:.*\n?', '', src, flags=re.M).strip()
            parts.append(re.sub(r'[ \t]*\{#[\w-]+\}[ \t]*$', '', links(callouts(src)), flags=re.M))
        elif c['cell_type'] == 'code':
            d, code = directives(src)
            # what the site computes in this place was computed once for README, and is committed
            if d.get('label') == 'fig-answer' and (text := found(root)): parts.append(text)
            if d.keys() & HIDDEN or d.get('echo') == 'false' or d.get('include') == 'false' or d.get('code-fold') == 'true' or 'parameters' in c['metadata'].get('tags', []): continue
            if code.strip(): parts.append(f'```python\n{code.strip()}\n```')
    return '\n\n'.join(parts) + '\n'


def run():
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    if answer.update(root): print('nbs/images/answer.png drawn from runs/demo/report.json')
    write_atomic(root/'README.md', readme(root))
    print('README.md written from nbs/index.ipynb')


if __name__ == '__main__': main(run)
