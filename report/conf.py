"Sphinx configuration of the site: it renders what the bridge wrote, asks no other host for anything, and warns of nothing."
import os

project = html_title = os.environ.get('SITE_TITLE', 'kinetics_dance')
extensions = ['myst_nb', 'sphinx_design', 'sphinx_copybutton', 'sphinx.ext.viewcode', 'report.sphinx_ext']
nb_execution_mode = 'off'        # the notebooks come executed
nb_merge_streams = True
nb_ipywidgets_js = {}            # no scripts from elsewhere
myst_enable_extensions = ['colon_fence', 'dollarmath', 'amsmath', 'attrs_inline', 'attrs_block', 'deflist', 'fieldlist', 'html_image', 'strikethrough']
myst_heading_anchors = 4
suppress_warnings = ['myst.header', 'myst.strikethrough', 'mystnb.unknown_mime_type']
smartquotes = False              # a label is shown as it is
numfig = True
numfig_format = {'figure': 'Figure %s', 'tbl': 'Table %s'}
numfig_secnum_depth = 0
html_math_renderer = 'mathml'
html_theme = 'furo'
html_theme_options = dict(sidebar_hide_name=False, navigation_with_keys=True,
                          light_css_variables={'color-brand-primary': '#0b5e8a', 'color-brand-content': '#0b5e8a'},
                          dark_css_variables={'color-brand-primary': '#6cc0ea', 'color-brand-content': '#6cc0ea'})
html_static_path = ['_static']
html_css_files, html_js_files = ['study.css'], ['study.js']
html_favicon = '_static/icon.svg'
language = 'en'
copybutton_selector = 'div.highlight pre:not(.cell_output pre)'
html_show_sourcelink = html_copy_source = html_show_sphinx = html_show_copyright = False
add_module_names = False
toc_object_entries_show_parents = 'hide'
python_maximum_signature_line_length = 70
pygments_style, pygments_dark_style = 'a11y-high-contrast-light', 'a11y-high-contrast-dark'
viewcode_line_numbers, viewcode_follow_imported_members = True, False     # the latter would import the library
