"Each function of core.text against a real reader of its language: what was written comes back, whatever it was."
import csv, io, re, warnings
from html.parser import HTMLParser
import pytest
from hypothesis import given, settings, strategies as st
from kinetics_dance.core.text import for_csv, for_figure, for_html, for_markdown, for_terminal, visible

# what hypothesis would find seldom: markup, line breaks, invisible characters, halves of surrogates
PARTS = st.sampled_from(['```', '{include}', '$', '\\', '|', '<b>', '&amp;', '](', ':::', '\n', '\r', '\t', '# ', '% ', '{{', '--', '...', '"', "'", '_', '*', '1. ', '+ ', '\x1b[31m', '\u202e', '\u2028',
                         '\0', '\ud800', '\udcff', '\ufffe', '\u3000', '\xa0', '\x85', ' ', '  ', '=', '@', '<!--', ']]>', '\\begin{equation}', '(a)=', '[^1]', ': ', '~~~', '🕺\u200d💃', '盆踊り', 'שלום', 'e\u0301'])
TEXT = st.lists(st.one_of(PARTS, st.text(max_size=6)), max_size=8).map(''.join)
LOOSE = settings(max_examples=150, deadline=None)


@pytest.fixture(scope='module')
def markdown():
    "Markdown as the site reads it: what docutils has of it"
    from docutils.core import publish_doctree
    from myst_parser.docutils_ import Parser
    from report.conf import myst_enable_extensions
    own = dict(myst_enable_extensions=[e for e in myst_enable_extensions if e != 'linkify'], report_level=1, halt_level=1, warning_stream='', _disable_config=True)
    return lambda s: publish_doctree(s, parser=Parser(), settings_overrides=own)


@LOOSE
@given(TEXT)
def test_visible(s):
    "One line that UTF-8 can hold; twice is once; what can be seen stays"
    v = visible(s)
    assert visible(v) == v and not re.search('[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]', v)
    v.encode('utf-8')
    assert len(visible(s, 12)) <= 12 and for_terminal(s) == v


@settings(max_examples=250, deadline=None)
@given(TEXT)
def test_markdown(markdown, s):
    "In a paragraph, a list, a heading and a table, emphasised or not, between words"
    v, m = visible(s), for_markdown(s)
    assert '\n' not in m
    if not v: return
    for frame in ('{}', 'a {} b', '- {}', '# {}', '> {}', 'The **{}** one'):
        tree = markdown(frame.format(m))
        assert tree.astext() == re.sub(r'^(- |# |> )|\*\*', '', frame).format(v), frame
    cells = [c.astext() for c in markdown(f'| {m} | b |\n|---|---|\n| c | {m} |').findall(lambda n: n.tagname == 'entry')]
    assert cells == [v, 'b', 'c', v]


@LOOSE
@given(TEXT)
def test_html(s):
    class Reader(HTMLParser):
        def __init__(self): super().__init__(); self.seen, self.text, self.attrs = [], '', []
        def handle_starttag(self, tag, attrs): self.seen.append(tag); self.attrs += attrs
        def handle_data(self, d): self.text += d
    r = Reader(); r.feed(f'<p title="{for_html(s)}" lang=\'{for_html(s)}\'>{for_html(s)}</p>'); r.close()
    assert (r.seen, r.text, r.attrs) == (['p'], visible(s), [('title', visible(s)), ('lang', visible(s))])


@settings(max_examples=40, deadline=None)
@given(TEXT)
def test_figure(s):
    "Matplotlib draws it, as no formula, and the legend has it"
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    f = for_figure(s)
    fig = Figure(figsize=(3, 2))
    FigureCanvasAgg(fig)
    ax = fig.subplots()
    ax.plot([0, 1], label=f)
    ax.set(title=f, ylabel=f, xticks=[0], xticklabels=[f])
    if f: ax.legend()
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='(Glyph|Tight|Matplotlib currently)')
        fig.canvas.draw()
    drawn, formula = Text()._preprocess_math(f)
    assert not formula and drawn.removeprefix('\u200c') == visible(s, 60)
    assert ax.get_legend_handles_labels()[1] == ([f] if f else [])


@pytest.mark.parametrize('s', [r'costs $\frac$ more', 'pay $5 or $6', r'a\$b$', '_hidden', 'x'*10_000, '$'])
def test_figure_by_hand(s): test_figure.hypothesis.inner_test(s)


@LOOSE
@given(TEXT)
def test_csv(s):
    "A row of cells comes back, and none begins like a formula; numbers are numbers"
    out = io.StringIO()
    csv.writer(out).writerow([for_csv(s), 'end'])
    (back, end), = csv.reader(io.StringIO(out.getvalue(), newline=''))
    assert end == 'end' and back in (visible(s), "'" + visible(s))
    if re.match(r'[=+@\t\r]|-(?!inf|nan|\s*[\d._])', s, re.I): assert back.startswith("'") or re.fullmatch(r'[+]\s*[\d._einfa]+', s, re.I), s


def test_csv_by_hand():
    for s in ('=1+1', '+cmd|x', '-2+3', '@SUM(A1)', '\t=1', '\r=1', ' =1', '＝1'): assert for_csv(s)[0] == "'", s
    for x in (-1.5, 3, None, True, '-1.5', '+2', '1e-5', 'tap', ''): assert for_csv(x) == x


def test_outputs_of_notebooks():
    "What a cell wrote is shown as it is where it is only text, else as its source; HTML keeps tables and films"
    from report.untrusted import acts, clean, markdown as shown, plain, raw
    for s in ('**a** *b* `c`\n\n- [x](05_comparison.ipynb)\n- [y](https://example.org/z)', 'a | b\n--|--\n1 | $x$', '1. a\n2. b', '```python\nx = {1: 2}\n```', '*(not run in this study)*'):
        assert not acts(s) and shown(s) == s
    for s in ('```{include} /etc/passwd\n```', '- a\n\n  ```{literalinclude} ../x\n  ```', '{download}`../../x`', '<script>x</script>', 'a <b onclick=x>', '![a](../../secret.png)', '[a](../../../etc/passwd)',
              '<project:../x>', '[a]: ../x\n\nb', ':::{raw} html\n:::', '```text\n::::::\n```{include} x\n```', '(a)=\n# b', '% c', '<!-- c -->', '{#a .b}\nc', '[a](x.pdf)',
              '```{csv-table}\n:file: /etc/passwd\n```', '---\na: b\n---\n'):
        assert acts(s), s
        assert not acts(shown(s)), s
    table = '<div><table class="dataframe"><tr><td>a &lt;b&gt; `c` ](</td></tr></table></div>'
    assert clean(table) == table
    film = '<video controls muted src="_static/media/a.mp4" poster="_static/media/b.jpg" aria-label="x"></video>'
    assert clean(film) == film
    for s in ('<script>x</script>', '<img src=x onerror=alert(1)>', '<a href="javascript:x">y</a>', '<svg onload=x>', '<div style="background:url(x)">', '</div></main><iframe src=x>', '<p onclick="x">', '<!--x--><base href=x>'):
        out = clean(s)
        assert not re.search(r'<(script|svg|iframe|base|/main|!--)|<\w[^>]*\s(on\w+|src|style|href)=', out), out
    assert clean('<div><p>a') == '<div><p>a</p></div>' and clean('a\u202eb') == 'a\\u202eb'
    hostile = '<p>\n````\n```{include} x\n:::::: [a](b)</p>'
    assert '```' not in raw(hostile).strip('`').split('\n', 1)[1].rsplit('\n', 1)[0] and ':::' not in raw(hostile) and '](' not in raw(hostile)
    assert plain('a\nb\x1b[31mc\x1b]0;t\x07\u202e') == 'a\nb\x1b[31mc\\x1b]0;t\\x07\\u202e'


def test_terminal_and_film(monkeypatch, tmp_path, capsys):
    "A label in brackets is no colour of rich's, one with a line break is drawn into a film, and no answer moves the cursor"
    from types import SimpleNamespace
    from rich.console import Console
    from kinetics_dance.deploy.output import Prediction, Printer
    from kinetics_dance.deploy.overlay import _caption
    from kinetics_dance.core.progress import Bars, Task
    label = '[/red]\x1b[2J\n=cmd|x $\\frac$ \u202e'
    console = Console(file=io.StringIO(), force_terminal=True)
    bars = Bars(console)
    task = Task(label, 2, screen=bars)
    task.update(1, label)
    bars.bars.refresh()
    bars.close(task)
    assert '\x1b[2J' not in console.file.getvalue() and '[/red]\\x1b[2J' in console.file.getvalue()
    assert _caption([label, 'b'], [.5, .5], 96, 128)[0].max() > 100
    import numpy as np
    p = Prediction([label, '_b'], np.zeros(1), 3., np.array([[.6, .4]]), (0., 3.))
    p.plot().savefig(tmp_path/'a.png')
    for many in (False, True):
        show = Printer(2, False)
        show(dict(video=label, warnings=[label]) | p.to_dict(2), p, many)
        out = ''.join(capsys.readouterr())
        assert '\x1b' not in out and '\u202e' not in out and '[/red]\\x1b[2J\\n=cmd|x' in out


def test_files_of_a_gallery():
    "Classes whose names have no letters, or the same ones, or too many, have files of their own"
    from report.gallery import file_name
    taken = set()
    names = [file_name(s, taken) for s in ('tap dancing', 'tap-dancing', '盆踊り', '🕺', '../../x', 'x'*900, '')]
    assert names[0] == 'tap-dancing' and len(set(names)) == 7 and all(re.fullmatch('[a-z0-9-]{1,80}', n) for n in names)
