"""The contract rows of jaxent._probability."""

from contract_row import Row

ROWS: tuple[Row, ...] = ()
NOT_LOSSES: dict[str, str] = {}
