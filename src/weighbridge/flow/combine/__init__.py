"""Several calls for one result: `best` of some candidates, the `first` that succeeds."""
