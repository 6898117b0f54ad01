package aecs

type Generation string

const (
	GenerationA Generation = "a"
	GenerationB Generation = "b"
	Auto        Generation = "auto"
)

type Secret struct {
	Service, Name, Type string
	Base64              bool
}

func (Secret) Check() error { return nil }
