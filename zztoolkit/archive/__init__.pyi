from .mar import Mar as Mar, open_mar as open_mar
from .packing import archive as archive
from .reconfigure import reconfigured as reconfigured
from .signing import new_key as new_key, sign as sign, verify as verify
