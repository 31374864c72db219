"""The table: every row is sent to every door."""

from tests.doors.rows.access import ACCESS
from tests.doors.rows.bodies import BODIES
from tests.doors.rows.caller import CALLER
from tests.doors.rows.clients import CLIENTS
from tests.doors.rows.endpoints import ENDPOINTS
from tests.doors.rows.extension import EXTENSION
from tests.doors.rows.fields import FIELDS
from tests.doors.rows.keys import KEY_ROWS
from tests.doors.rows.nulls import NULLS
from tests.doors.rows.responses import RESPONSES
from tests.doors.rows.streams import STREAMS

ROWS = [
    *(*ENDPOINTS, *BODIES, *FIELDS, *EXTENSION, *CALLER, *KEY_ROWS),
    *(*ACCESS, *STREAMS, *CLIENTS, *RESPONSES, *NULLS),
]
