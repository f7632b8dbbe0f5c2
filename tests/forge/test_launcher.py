"""A model made by several processes is the one that a single process makes; a cancelled run leaves none of them."""
