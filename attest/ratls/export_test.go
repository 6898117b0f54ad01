package ratls

// Read and ReadDICE are for tests.
var (
	Read     = read
	ReadDICE = readDICE
)
