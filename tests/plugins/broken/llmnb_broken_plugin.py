raise ImportError("this plugin needs a library that nobody has")
