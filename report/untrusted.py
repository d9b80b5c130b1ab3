"""What a notebook wrote while it ran, on its way to the site. It may hold labels, paths and names from files of other people, so it
shows and never acts: no directive, no role, no file, no script. Authored cells and pages keep all of MyST."""
import html, re
from functools import lru_cache
from html.parser import HTMLParser
from kinetics_dance.core.text import for_html, for_markdown, visible
from .conf import myst_enable_extensions

PLAIN = {'inline', 'text', 'text_special', 'softbreak', 'hardbreak', 'code_inline', 'code_block', 'fence', 'hr', 'math_inline', 'math_block',
         *(f'{k}_{e}' for e in ('open', 'close') for k in ('paragraph', 'strong', 'em', 's', 'heading', 'bullet_list', 'ordered_list', 'list_item',
                                                           'blockquote', 'link', 'table', 'thead', 'tbody', 'tr', 'th', 'td'))}
# a page of the web, a place on the same page, or another notebook of the project; a file would be copied into the site
GOES_TO = re.compile(r'https?://\S+|mailto:\S+|#[\w.-]*|(\.\./)?(\w+/)?(\d\d_\w+|index)\.ipynb(#[\w.-]*)?')


@lru_cache(None)
def parser():
    "The parser that the site has, without what it renders to"
    from markdown_it.renderer import RendererHTML
    from myst_parser.config.main import MdParserConfig
    from myst_parser.parsers.mdit import create_md_parser
    return create_md_parser(MdParserConfig(enable_extensions=set(myst_enable_extensions)), lambda _: RendererHTML())


def decorated(t):
    "Did the text give a token attributes? (Those that Markdown itself needs are no decoration.)"
    own = {'link_open': {'href', 'title'}, 'ordered_list_open': {'start'}, 'th_open': {'style'}, 'td_open': {'style'}}.get(t.type, set())
    return bool(set(t.attrs) - own)


def acts(text):
    "Is there anything in Markdown that is more than text: a directive, a role, HTML, a picture, a link to a file, a definition?"
    env = {}
    tokens = parser().parse(text, env)
    tokens += [c for t in tokens for c in t.children or []]
    # a fence of colons would end the figure that it stands in, and what follows would be read anew
    return bool(env.get('references')) or ':::' in text or any(
        t.type not in PLAIN or decorated(t) or t.type == 'fence' and '{' in t.info or t.type == 'link_open' and not GOES_TO.fullmatch(str(t.attrs['href'])) for t in tokens)


def markdown(text):
    "Markdown that a cell made: as it is where it is only text, else its source, to be read"
    if not acts(text): return text
    return '\\\n'.join(for_markdown(l) for l in text.splitlines() if l.strip())


def raw(html):
    "MyST of HTML that we made: no text in it ends the directive, begins another one, or looks like a link to a page"
    return '````{raw} html\n' + re.sub(r'`|:(?=::)|\](?=\()', lambda m: f'&#{ord(m[0])};', html) + '\n````'


TAGS = set('a b blockquote br caption code col colgroup dd details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img kbd li ol p pre s small source span strong '
           'sub summary sup table tbody td tfoot th thead tr u ul var video'.split())
VOID = {'br', 'col', 'hr', 'img', 'source'}
ATTRIBUTES = set('alt class colspan controls decoding dir height href id lang loading loop muted open playsinline poster preload role rowspan scope span src style tabindex '
                 'title type width'.split())
FILES = re.compile(r'_static/media/[\w.-]+')


class Clean(HTMLParser):
    "HTML of an output, with the tags and attributes that tables, pictures and films need; all else becomes text"
    def __init__(self, text):
        super().__init__()
        self.out, self.inside = [], []
        self.feed(text)
        self.close()
        self.out += [f'</{t}>' for t in reversed(self.inside)]

    def keeps(self, name, value):
        value = value or ''
        if name in ('src', 'poster'): return bool(FILES.fullmatch(value))
        if name == 'href': return bool(GOES_TO.fullmatch(value) or FILES.fullmatch(value))
        if name == 'style': return not re.search(r'[\\@<]|url|expression|position|import', value, re.I)
        return name in ATTRIBUTES or name.startswith('aria-')

    def handle_starttag(self, tag, attrs):
        if tag not in TAGS: return self.out.append(for_html(self.get_starttag_text()))
        kept = ''.join(f' {k}' if v is None else f' {k}="{for_html(v)}"' for k, v in attrs if self.keeps(k, v))
        self.out.append(f'<{tag}{kept}>')
        if tag not in VOID: self.inside.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag in TAGS - VOID: self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in TAGS: return self.out.append(for_html(f'</{tag}>'))
        if tag in self.inside:
            while (last := self.inside.pop()) != tag: self.out.append(f'</{last}>')
            self.out.append(f'</{tag}>')

    def handle_data(self, data): self.out.append(html.escape(visible(data, keep='\n\t')))
    def handle_comment(self, data): self.out.append(for_html(f'<!--{data}-->'))
    def handle_decl(self, decl): self.out.append(for_html(f'<!{decl}>'))
    def handle_pi(self, data): self.out.append(for_html(f'<?{data}>'))
    def unknown_decl(self, data): self.out.append(for_html(f'<![{data}]>'))


def clean(text): return ''.join(Clean(text).out)


def plain(text):
    "What was printed: lines and colours stay, nothing else that cannot be seen does"
    return re.sub('\x1b(?!\\[[0-9;]*m)', r'\\x1b', visible(text, keep='\n\t\x1b'))
