"A Sphinx extension: numbered figures and tables made of any output, formulas as MathML, sources that are read and not imported."
import ast, html, os, re
from pathlib import Path
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.math import get_node_equation_number

log = logging.getLogger(__name__)


class tblfig(nodes.figure): "A table with a number of its own, whatever it is made of"


class Float(SphinxDirective):
    "Outputs of a cell under a label and a caption: a numbered figure (pictures, films) or a numbered table (HTML)"
    optional_arguments, final_argument_whitespace, has_content = 1, True, True
    option_spec = dict(name=directives.unchanged, kind=directives.unchanged)

    def run(self):
        table = self.options.get('kind') == 'tbl'
        node = tblfig() if table else nodes.figure()
        node['classes'] += ['float', 'float-table' if table else 'float-figure']
        body = self.parse_content_to_nodes()
        cap = nodes.caption('', '', *self.parse_inline(self.arguments[0])[0]) if self.arguments and self.arguments[0] else None
        if cap is None: log.warning('%s has no caption', self.options.get('name'), location=self.get_location())
        node += [x for x in ([cap, *body] if table else [*body, cap]) if x is not None]
        self.set_source_info(node)
        self.add_name(node)
        return [node]


def mathml(tex, block, node):
    "MathML, which browsers draw themselves: no script to load. docutils converts it, so it costs no dependency"
    tex = re.sub(r'(\\[td]?frac)\s*(\w)\s*(\w)', r'\1{\2}{\3}', tex).replace(r'\dots', r'\ldots')    # what its parser misses
    try: return tex2mathml(tex.strip(), as_block=block)
    except MathError as e:
        log.warning('formula not understood: %s in %s', e, tex, location=node)
        return f'<code>{html.escape(tex)}</code>'


def visit_math(self, node):
    self.body.append(mathml(node.astext(), False, node))
    raise nodes.SkipNode


def visit_displaymath(self, node):
    self.body.append(self.starttag(node, 'div', CLASS='math'))
    if node['number']:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, 'Link to this equation')
        self.body.append('</span>')
    self.body.append(mathml(node.astext(), True, node) + '</div>')
    raise nodes.SkipNode


def find_source(app, modname):
    "Source of a library module for the source pages, read and not imported: importing would load torch"
    p = Path(os.environ['SITE_LIB'], *modname.split('.')[1:]).with_suffix('.py')
    if not p.exists(): return None
    src = p.read_text(encoding='utf-8')
    tags = {}
    def add(body, pre=''):
        for n in body:
            if not isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): continue
            name, cls = pre + n.name, isinstance(n, ast.ClassDef)
            for d in n.decorator_list:        # fastcore's `@patch def f(self:Cls)` is the method Cls.f
                if ast.unparse(d).split('(')[0] == 'patch' and (a := n.args.args) and a[0].annotation: name = f'{ast.unparse(a[0].annotation)}.{n.name}'
            tags[name] = ('class' if cls else 'def', min([n.lineno, *(d.lineno for d in n.decorator_list)]), n.end_lineno)
            if cls: add(n.body, name + '.')
    add(ast.parse(src).body)
    return src, tags


def number_by_page(app, env):
    "Figures and tables are counted page by page: a reader of one page should not meet Figure 24 first"
    for kinds in env.toc_fignumbers.values():
        for kind, ids in kinds.items(): kinds[kind] = {i: (n,) for n, i in enumerate(ids, 1)}
    return []


def setup(app):
    app.connect('env-get-updated', number_by_page, priority=900)
    app.add_directive('float', Float)
    app.add_enumerable_node(tblfig, 'tbl', html=(lambda s, n: s.visit_figure(n), lambda s, n: s.depart_figure(n)))
    app.add_html_math_renderer('mathml', (visit_math, None), (visit_displaymath, None))
    app.connect('viewcode-find-source', find_source)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
