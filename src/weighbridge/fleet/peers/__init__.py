"""What several gateways know together through one Redis: who is there, which replicas, how quick they are"""
