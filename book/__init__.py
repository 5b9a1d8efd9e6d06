"""The pages around the chapters, and what renders them."""
