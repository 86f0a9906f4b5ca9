"""Who should hold which layers. Pure: facts in, a Plan or an error out."""
