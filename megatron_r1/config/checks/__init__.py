"""What spans groups of a configuration. Each check takes the groups that it reads, and raises
ConfigError with the settings' paths, their values and a way out; `RunConfig.validate` makes all.
"""
