from .handler import Handler as Handler
from .inputs import (
    as_array as as_array,
    as_image as as_image,
    as_inputs as as_inputs,
    as_json as as_json,
    stack_inputs as stack_inputs,
)
from .local import LocalHandler as LocalHandler
from .rows import run_concatenated as run_concatenated
from .wire import (
    decode_request as decode_request,
    decode_response as decode_response,
    encode_request as encode_request,
    encode_response as encode_response,
)
