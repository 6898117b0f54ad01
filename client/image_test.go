package client_test

import (
	"bytes"
	"errors"
	"hash/crc32"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"math"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/client"
)

// halves is red on the left and blue on the right.
func halves(width, height int) *image.NRGBA {
	img := image.NewNRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			c := color.NRGBA{R: 255, A: 255}
			if x >= width/2 {
				c = color.NRGBA{B: 255, A: 255}
			}
			img.SetNRGBA(x, y, c)
		}
	}
	return img
}

func encode(t *testing.T, img image.Image, format string) []byte {
	t.Helper()
	var b bytes.Buffer
	err := png.Encode(&b, img)
	if format == "jpeg" {
		b.Reset()
		err = jpeg.Encode(&b, img, &jpeg.Options{Quality: 100})
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReadImageMakesRGBOfAnySize(t *testing.T) {
	for _, test := range []struct {
		format        string
		width, height int
	}{{"png", 224, 224}, {"png", 500, 300}, {"png", 2, 1}, {"jpeg", 448, 448}} {
		got, err := client.ReadImage(bytes.NewReader(encode(t, halves(test.width, test.height), test.format)))
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != client.ImageLength {
			t.Fatalf("%v: %d values", test, len(got))
		}
		for place, want := range map[[2]int][3]float32{{0, 0}: {1, 0, 0}, {223, 10}: {1, 0, 0}, {100, 220}: {0, 0, 1}} {
			pixel := got[(place[0]*client.ImageSize+place[1])*3:][:3]
			for c := range 3 {
				if math.Abs(float64(pixel[c]-want[c])) > 0.05 {
					t.Errorf("%v: pixel at row, column %v is %v, not %v", test, place, pixel, want)
					break
				}
			}
		}
	}
}

func TestTransparentPixelsAreBlack(t *testing.T) {
	for _, v := range client.Pixels(image.NewNRGBA(image.Rect(0, 0, 10, 10))) {
		if v != 0 {
			t.Fatalf("a transparent pixel has the value %v", v)
		}
	}
}

func TestPixelsTakesPartOfALargerImage(t *testing.T) {
	img := image.NewRGBA(image.Rect(0, 0, 300, 300))
	img.SetRGBA(40, 50, color.RGBA{R: 255, A: 255})
	part := client.Pixels(img.SubImage(image.Rect(40, 50, 264, 274)))
	if part[0] != 1 || part[3] != 0 {
		t.Errorf("first pixels are %v, not red and black", part[:6])
	}
}

func TestReadImageRefusesBeforeDecoding(t *testing.T) {
	whole := encode(t, halves(64, 64), "png")
	huge := bytes.Clone(whole)
	copy(huge[16:], []byte{0, 1, 0, 0, 0, 1, 0, 0}) // width and height 65536 in the header chunk
	sum := crc32.ChecksumIEEE(huge[12:29])
	copy(huge[29:], []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	for _, test := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "unknown format"},
		{"text", []byte("a cat"), "unknown format"},
		{"cut off", whole[:len(whole)/2], "not enough pixel data"},
		{"too many pixels", huge, "pixels"},
		{"too many bytes", make([]byte, 32<<20+1), "more than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := client.ReadImage(bytes.NewReader(test.data))
			if attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, not one of code config with %q", err, test.want)
			}
		})
	}
	broken := errors.New("disk on fire")
	if _, err := client.ReadImage(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("error is %v, not %v", err, broken)
	}
}
