"""Character: four rules of virtue baked in, an OODA loop with a council, and a model of one's own temperature."""
