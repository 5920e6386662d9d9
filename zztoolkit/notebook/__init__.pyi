from .serve import serve_model as serve_model
from .magics import ServeMagics as ServeMagics, load as load
from .panel.panel import Panel as Panel, show_panel as show_panel
