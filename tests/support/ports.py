"Free ports."
import psutil

from zztoolkit.serving.torchserve.config import free_ports


def block_of_five() -> int:
    "Return a port that is free together with the four after it"
    while True:
        [port] = free_ports(1)
        used = {c.laddr.port for c in psutil.net_connections("inet") if c.laddr}
        if port < 65_000 and not used & set(range(port, port + 5)): return port
