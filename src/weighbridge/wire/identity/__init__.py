"""Who a request is from, however that is known: a key, a certificate, a proxy's word, a token."""
