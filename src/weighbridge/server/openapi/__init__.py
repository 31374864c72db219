"""The HTTP interface as OpenAPI 3.1, made from the types that read requests, and a page that shows it."""
