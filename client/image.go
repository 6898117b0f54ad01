package client

import (
	"bytes"
	"image"
	_ "image/jpeg" // formats of ReadImage
	_ "image/png"
	"io"

	"golang.org/x/image/draw"

	"github.com/sesame-init/sesame/attest"
)

// ImageSize is the width and height that a model wants, ImageLength the number of values of an image: red, green and
// blue for each pixel, row by row.
const (
	ImageSize   = 224
	ImageLength = ImageSize * ImageSize * 3
)

const (
	maxImageBytes  = 32 << 20
	maxImagePixels = 64 << 20
)

// ReadImage decodes a JPEG or PNG image, of at most 32 MiB and 64 million pixels, and makes model input of it.
func ReadImage(r io.Reader) ([]float32, error) {
	refuse := func(hint, format string, args ...any) ([]float32, error) {
		return nil, attest.Errorf(attest.CodeConfig, "reading image", hint, format, args...)
	}
	data, err := io.ReadAll(io.LimitReader(r, maxImageBytes+1))
	if err != nil {
		return refuse("", "%w", err)
	}
	if len(data) > maxImageBytes {
		return refuse("", "more than %d bytes", maxImageBytes)
	}
	c, _, err := image.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return refuse("Use a JPEG or PNG file.", "%w", err)
	}
	if c.Width < 1 || c.Height < 1 || c.Width > maxImagePixels/c.Height {
		return refuse("", "%d×%d pixels are not from 1 to %d", c.Width, c.Height, maxImagePixels)
	}
	img, _, err := image.Decode(bytes.NewReader(data))
	if err != nil {
		return refuse("Is the file complete?", "%w", err)
	}
	return Pixels(img), nil
}

// Pixels makes model input of an image: scaled to 224×224 by bicubic (Catmull-Rom) interpolation whatever its shape,
// values 0..1, transparent parts black.
func Pixels(img image.Image) []float32 {
	small, ok := img.(*image.RGBA)
	if !ok || small.Rect.Dx() != ImageSize || small.Rect.Dy() != ImageSize {
		small = image.NewRGBA(image.Rect(0, 0, ImageSize, ImageSize))
		draw.CatmullRom.Scale(small, small.Rect, img, img.Bounds(), draw.Src, nil)
	}
	values := make([]float32, 0, ImageLength)
	for y := range ImageSize {
		row := small.Pix[y*small.Stride:]
		for x := range ImageSize {
			for _, v := range row[4*x:][:3] {
				values = append(values, float32(v)/255)
			}
		}
	}
	return values
}
