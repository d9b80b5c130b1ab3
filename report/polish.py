"""What is done to the pages after Sphinx: pictures say how large they are (so nothing jumps) and load when they are seen; drawings are
told from photographs (the dark theme turns them over); files that no page shows are dropped. And the checks of the finished site."""
import base64, hashlib, re
from functools import lru_cache
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit
from .common import UserError, settings
from .try_it import PAGE

LOADED = {'stylesheet', 'icon', 'preload', 'modulepreload', 'manifest'}   # what a browser fetches of a page's <link>s; `next` and `index` it does not
HEAVIEST = 1_500_000       # bytes of a page with its scripts and styles, without pictures and films


@lru_cache(None)
def looks(path):
    "((width, height) or None, is it a drawing on white?) of a picture"
    import numpy as np
    from PIL import Image
    if path.suffix == '.svg':
        s = path.read_text(encoding='utf-8', errors='replace')
        m = re.search(r'<svg[^>]*?\bwidth="([\d.]+)(?:pt|px)?"[^>]*?\bheight="([\d.]+)|<svg[^>]*?\bheight="([\d.]+)(?:pt|px)?"[^>]*?\bwidth="([\d.]+)', s)
        size = None if not m else (float(m[1] or m[4]), float(m[2] or m[3]))
        return size and tuple(round(x*96/72) for x in size), '<image' not in s
    try: img = Image.open(path)
    except OSError: return None, False
    small = img.convert('RGBA').resize((96, 96), Image.Resampling.BOX)
    flat = np.asarray(Image.alpha_composite(Image.new('RGBA', small.size, 'white'), small))[..., :3]
    return img.size, bool((flat.min(-1) > 235).mean() > .55)


def picture(tag, folder):
    "An `<img>` with its size, loaded when it is seen"
    m = re.search(r'\ssrc="([^"]+)"', tag)
    if not m or re.match(r'\w+:', m[1]): return tag
    p = (folder/unquote(m[1])).resolve()
    if not p.is_file(): return tag
    size, drawing = looks(p)
    add = ''
    if size and not re.search(r'\swidth=', tag): add += f' width="{size[0]}" height="{size[1]}"'
    if 'loading=' not in tag: add += ' loading="lazy"'
    if 'decoding=' not in tag: add += ' decoding="async"'
    if drawing: tag = tag.replace('class="', 'class="drawing ', 1) if ' class="' in tag else tag.replace('<img', '<img class="drawing"', 1)
    return re.sub(r'\s*/?>$', add + '>', tag)


def polish(out):
    "Every page of the site in `out`, in place"
    used = set()
    for p in sorted(out.rglob('*.html')):
        s = p.read_text(encoding='utf-8')
        new = re.sub(r'<img\b[^>]*>', lambda m: picture(m[0], p.parent), s)
        # what the theme and Sphinx write that screen readers stumble over: headings without a level, lists of nothing but descriptions
        new = new.replace('<p class="caption" role="heading">', '<p class="caption" role="heading" aria-level="2">')
        new = re.sub(r'<dl>\s*((?:<dd>(?:(?!</?d[dl]\b).)*</dd>\s*)+)</dl>', lambda m: '<span class="sig-lines">' + re.sub('<(/?)dd>', r'<\1span>', m[1]) + '</span>', new, flags=re.S)
        used |= set(re.findall(r'_static/(?:media|results)/([\w./-]+)', new))
        if new != s: p.write_text(new, encoding='utf-8')
    for f in (out/'_static/media').glob('*'):
        if f.name not in used: f.unlink()


INLINE = re.compile(r'<script>(.*?)</script>', re.S)
BY_THE_THEME = ('genindex.html', 'search.html')      # pages on which nothing of a study stands


def policy(scripts, models=False):
    """What a page may load and run: our own files, and these inline scripts. `file:` is our own for a site that is opened from a folder,
    and nothing for one that comes from a server. A page with `models` may compile them, play a file of the reader's, and ask nobody for anything."""
    hashes = ' '.join(sorted(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts))
    return ("default-src 'self' file: data:; " + f"script-src 'self' file: {hashes}".strip() +
            (" 'wasm-unsafe-eval'; media-src 'self' file: blob:; connect-src 'none'; worker-src 'none'" if models else '') +
            "; style-src 'self' file: 'unsafe-inline'; object-src 'none'; frame-src 'none'; base-uri 'none'; form-action 'self' file:")


def protect(out):
    "A Content-Security-Policy on every page of the site in `out`: a script that came in with a label does not run"
    ours = {s for f in BY_THE_THEME if (out/f).exists() for s in INLINE.findall((out/f).read_text(encoding='utf-8'))}
    for p in sorted(out.rglob('*.html')):
        meta = f'<meta http-equiv="Content-Security-Policy" content="{policy(ours, models=p == out/(PAGE + ".html"))}">'
        s = p.read_text(encoding='utf-8')
        new, n = re.subn(r'<meta charset="utf-8"\s*/?>', lambda m: f'{m[0]}\n{meta}', s, count=1, flags=re.I)
        if not n: raise UserError(f'{p.relative_to(out)}: has no line for its encoding, so the policy for scripts has no place')
        p.write_text(new, encoding='utf-8')


class Page(HTMLParser):
    "The text of a page, what can be pointed at, what it points at, and what it loads"
    def __init__(self, path):
        super().__init__()
        self.text, self.ids, self.links, self.loads, self.media = [], set(), [], [], []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_data(self, d): self.text.append(d)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        if tag == 'a' and a.get('href') is not None: self.links.append(a['href'])
        loads = [a[k] for k in ('src', 'poster') if a.get(k)] + ([a['href']] if tag == 'link' and 'href' in a and LOADED & set((a.get('rel') or '').split()) else [])
        (self.media if tag in ('img', 'video', 'source') else self.loads).extend(loads)


def check_pages(out, root):
    """What is wrong with the finished pages, as a list: folders or memory of this machine, requests to other hosts, links and anchors
    that lead nowhere, too many bytes"""
    pages, bad, own = {p: Page(p) for p in sorted(out.rglob('*.html'))}, [], settings(root).get('doc_host', '-')
    for p, t in pages.items():
        where, text = p.relative_to(out), ''.join(t.text)
        for what, pat in (('an absolute path', rf'{re.escape(str(root))}|/site-packages/'), ('a memory address', r' at 0x[0-9a-f]+')):
            if p.parent == out and (m := re.search(pat, text)): bad.append(f'{where}: {what}: ' + ' '.join(text[max(0, m.start() - 80):m.end() + 80].split()))
        bad += [f'{where}: loads {u}' for u in t.loads + t.media if re.match(r'(https?:)?//', u) and not u.startswith(own)]
        weight = p.stat().st_size
        for u in t.loads + t.media + t.links:
            if re.match(r'[a-z][a-z0-9+.-]*:|//', u, re.I): continue
            at = urlsplit(u)
            target = (p.parent/unquote(at.path)).resolve() if at.path else p
            if not target.is_file(): bad.append(f'{where}: leads to {u}, which is not there'); continue
            if u in t.loads: weight += target.stat().st_size
            if at.fragment and target in pages and unquote(at.fragment) not in pages[target].ids: bad.append(f'{where}: leads to {u}, where there is no such place')
        if weight > HEAVIEST: bad.append(f'{where}: {weight/1e6:.2f} MB before pictures and films')
    return list(dict.fromkeys(bad))


def refuse(out, root):
    if bad := check_pages(out, root): raise UserError('the site was not built: ' + '; '.join(bad[:20]) + (f'; and {len(bad) - 20} more' if len(bad) > 20 else ''))
