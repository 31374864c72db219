"""What a replica can: endpoints, tools, schemas, pictures, context; told, stated or learned from refusals."""
