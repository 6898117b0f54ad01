package ratls

// ReadBound and ReadDICE are for tests.
var (
	ReadBound = read
	ReadDICE  = readDICE
)
