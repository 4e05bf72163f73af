"""How Sphinx builds the documentation site: `make docs`, or `python -m sphinx -W -b html docs build/docs`.

Pages are Markdown (MyST). The extensions in docs/_ext generate at build time what would otherwise be written twice:
flags from the field docstrings, memory and operations from the estimator, tasks from their table; the tables of figures
are the files in benchmarks/results. The build needs no network and no GPU, and the site loads nothing from elsewhere.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from megatron_alum import __version__  # noqa: E402  (found through the line above)

project = "megatron_alum"
author = "megatron_alum contributors"
project_copyright = "megatron_alum contributors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "docstrings", "mathml"]
extensions += ["measured", "program_options", "resources", "task_table"]  # generated at build time
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_ext"]
smartquotes = False  # it would turn the two dashes of a flag into one

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__"}
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "megatron_alum"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
