"""What tests share: small problems, cases, checks, servers and faults, and programs that tests run in processes."""
