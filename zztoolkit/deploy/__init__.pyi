from .pod_config import Pod as Pod, Ports as Ports
from .pod import run as run
from .image import image_context as image_context
from .rendering import render as render
from .helm import Release as Release
from .checks import check as check
from .releasing import diff as diff, apply as apply
from .sizing import Measured as Measured, Terms as Terms, Size as Size, size as size
