from .serve import serve_model as serve_model
from .magics import ServeMagics as ServeMagics, load as load
from .panel.panel import Panel as Panel, panel as panel
