"""The website: README, notebooks, tutorial and docstrings, as they are; nothing is executed. The README says how to build it.

With `repository`, the public address (or `-D repository=https://github.com/OWNER/NAME`), pages link to it and to Colab.
"""

import posixpath
import re
from pathlib import Path

from docutils import nodes, utils
from myst_parser.parsers.sphinx_ import MystParser
from sphinx import package_dir
from sphinx.addnodes import download_reference
from sphinx.search.en import SearchEnglish
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri

repository = ""
project = html_title = "tfpar"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.githubpages"]
root_doc = "tutorial/site/index"
include_patterns = ["README.md", "notebooks/**", "tutorial/**.md", "tutorial/site/*.rst", "tests/benchmarks/README.md"]
exclude_patterns = ["tutorial/en/*", "tutorial/zh/[0-9]*"]  # these are the notebooks
nb_execution_mode, myst_heading_anchors = "off", 3
default_role, highlight_language, pygments_style = "code", "none", "friendly"
autodoc_default_options, python_maximum_signature_line_length, napoleon_use_ivar = {"members": True}, 100, True

html_theme, html_theme_options, html_favicon = "furo", {"top_of_page_buttons": ["edit"]}, "static/icon.svg"
translations = f"{package_dir}/locale/zh_CN/LC_MESSAGES/sphinx.js"  # what the search prints, in Chinese
html_static_path, html_css_files, templates_path = ["static", translations], ["site.css"], ["templates"]
html_additional_pages = {"index": "to_front_page.html", "tutorial/site/zh/search": "search.html"}
html_sourcelink_suffix, html_show_copyright, html_search_language = "", False, "both"

CHINESE = {"Search": "搜索", "On this page": "本页内容", "Next": "下一页", "Previous": "上一页", "Home": "首页"}
CHINESE |= {"Back to top": "回到顶部", "Edit this page": "编辑本页"}


class SearchBoth(SearchEnglish):
    """English words, stemmed, and all pairs of neighboring Chinese characters, because Chinese has no spaces between words."""

    lang = "both"
    pattern = r"(?=([\u4e00-\u9fff]{2}))[\u4e00-\u9fff]|(?:(?![\u4e00-\u9fff])[\p{L}\p{N}_])+"
    js_splitter_code = f"var splitQuery = query => [...query.matchAll(/{pattern}/gu)].map(word => word[1] || word[0]);"

    def split(self, text):
        return [word[1] or word[0] for word in re.finditer(self.pattern.replace(r"[\p{L}\p{N}_]", r"\w"), text)]


class Markdown(SphinxDirective):
    """A part of a docstring that is Markdown, between reStructuredText."""

    has_content = True

    def run(self):
        document = utils.new_document("docstring", self.state.document.settings)
        MystParser().parse("\n".join(self.content), document)
        return document.children


def read_as_markdown(app, what, name, thing, options, lines):
    """Docstrings are Markdown up to their first section, which Napoleon reads."""
    sections = re.compile("(Args|Attributes|Returns|Yields|Raises|Example):")
    end = next((number for number, line in enumerate(lines) if sections.fullmatch(line)), len(lines))
    lines[:end] = [".. markdown::", "", *("   " + line for line in lines[:end]), ""]


def read_page(app, docname, text):
    """Insert the parts of other files that a page names; lead links to the source of a page to its notebook."""
    top = Path(app.srcdir)

    def moved(match, folder):
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        path = re.sub(r"^tutorial/(?:en/|(zh/))(\d\d_\w+)\.md$", r"notebooks/\1\2.ipynb", path)
        return f"](/{path}" if (top / path).is_file() else match[0]

    def seen_from_top(text, folder):
        return re.sub(r"\]\((?![#/]|\w+:)([^)#\s]+)", lambda match: moved(match, folder), text)

    def inserted(match):
        app.env.note_dependency(str(top / match[1]))
        part = (top / match[1]).read_text().split(match[2], 1)[1].split(match[3], 1)[0]
        return seen_from_top(part, posixpath.dirname(match[1]))

    if app.env.doc2path(docname).suffix == ".md":
        text[0] = seen_from_top(text[0], posixpath.dirname(docname))
        text[0] = re.sub(r"<!-- (\S+) from `(.+)` to `(.+)` -->", inserted, text[0])


def open_files(app, doctree, docname):
    """Let links to files of the repository open them; Sphinx would save them."""
    for node in list(doctree.findall(download_reference)):
        here = relative_uri(app.builder.get_target_uri(docname), f"_downloads/{node['filename']}")
        path = posixpath.normpath(posixpath.join("/", posixpath.dirname(docname), node["reftarget"]))
        public = app.config.repository and f"{app.config.repository}/blob/main{path}"
        node.replace_self(nodes.reference("", "", *node.children, refuri=public or here))


def describe_page(app, docname, template, context, doctree):
    """Tell the templates a page's language, the same page in the other language, and where its source is."""
    chinese, repository = "/zh/" in docname, app.config.repository
    other = docname.replace("/zh/", "/") if chinese else "/zh/".join(docname.rsplit("/", 1))
    fronts = ["tutorial/site/zh/index", root_doc]
    source = re.sub(r"^notebooks/(zh/|)(\d\d_\w+)$", lambda at: f"tutorial/{at[1] or 'en/'}{at[2]}", docname)
    suffix = ".md" if source != docname else context.get("page_source_suffix")
    context |= {"language": "zh-CN" if chinese else "en", "master_doc": fronts[not chinese], "repository": repository}
    context["other"] = other if other in app.env.all_docs else fronts[chinese]
    context["theme_source_edit_link"] = repository and f"{repository}/edit/main/{source}{suffix}"
    if chinese:
        context["_"] = context["gettext"] = lambda text: CHINESE.get(text, text)
        pathto = context["pathto"]
        context["pathto"] = lambda name, *how: pathto("tutorial/site/zh/search" if name == "search" else name, *how)
        if template == "search.html":
            app.add_js_file("sphinx.js")


def setup(app):
    app.add_config_value("repository", "", "html")
    app.add_search_language(SearchBoth)
    app.add_directive("markdown", Markdown)
    app.connect("autodoc-process-docstring", read_as_markdown, priority=400)
    # The docstring of a named tuple describes its fields.
    app.connect("autodoc-skip-member", lambda *about: type(about[3]).__name__ == "_tuplegetter" or None)
    app.connect("source-read", read_page)
    app.connect("doctree-resolved", open_files)
    app.connect("html-page-context", describe_page)
