from .mar import Mar as Mar, open_mar as open_mar
from .packing import pack as pack
from .reconfigure import with_config as with_config
from .signing import new_key as new_key, sign as sign, verify as verify
