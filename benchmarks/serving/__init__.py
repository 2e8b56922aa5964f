"""What a served request costs, and what a server stands."""
