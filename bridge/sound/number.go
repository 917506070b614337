package sound

import (
	"slices"
	"strconv"
	"strings"
)

// Number returns the sounds that say n in a language, named and put together as Asterisk does it, so that its sets have
// them. Above 999, where no conference goes, it is said digit by digit. Languages without rules of their own count as
// English does.
func Number(language string, n int) []string {
	if n > 999 {
		return digitByDigit(n)
	}
	short, _, _ := strings.Cut(language, "_")
	words := english
	switch short {
	case "de":
		words = german
	case "es":
		words = spanish
	case "fr":
		words = french
	case "it":
		words = italian
	case "ru":
		words = russian
	}
	if n <= 0 {
		return []string{"digits/0"}
	}
	return words(n)
}

func digitByDigit(n int) []string {
	var names []string
	for _, d := range strconv.Itoa(max(0, n)) {
		names = append(names, "digits/"+string(d))
	}
	return names
}

func digit(n int) string { return "digits/" + strconv.Itoa(n) }

const hundred = "digits/hundred"

// english: two hundred | twenty | one.
func english(n int) []string {
	switch {
	case n == 0:
		return nil
	case n < 20 || n < 100 && n%10 == 0:
		return []string{digit(n)}
	case n < 100:
		return []string{digit(n - n%10), digit(n % 10)}
	}
	return slices.Concat([]string{digit(n / 100), hundred}, english(n%100))
}

// german: zwei hundert | ein-und | zwanzig; hundert alone, but ein hundert eins.
func german(n int) []string {
	switch {
	case n == 0:
		return nil
	case n < 20 || n < 100 && n%10 == 0:
		return []string{digit(n)}
	case n < 100:
		return []string{digit(n%10) + "-and", digit(n - n%10)}
	case n == 100:
		return []string{hundred}
	case n < 200:
		return slices.Concat([]string{"digits/1N", hundred}, german(n%100))
	}
	return slices.Concat([]string{digit(n / 100), hundred}, german(n%100))
}

// spanish: one word up to 30 and for each hundred; treinta | y | uno; cien alone, but ciento uno.
func spanish(n int) []string {
	switch {
	case n == 0:
		return nil
	case n <= 30 || n < 100 && n%10 == 0:
		return []string{digit(n)}
	case n < 100:
		return []string{digit(n - n%10), "digits/and", digit(n % 10)}
	case n == 100:
		return []string{digit(100)}
	case n < 200:
		return slices.Concat([]string{"digits/100-and"}, spanish(n%100))
	}
	return slices.Concat([]string{digit(n - n%100)}, spanish(n%100))
}

// french: vingt | et | un; soixante | et | onze; quatre-vingt | dix-neuf; cent without a one before it.
func french(n int) []string {
	switch {
	case n == 0:
		return nil
	case n <= 20 || n < 70 && n%10 == 0 || n == 80:
		return []string{digit(n)}
	case n < 70 && n%10 == 1:
		return []string{digit(n - 1), "digits/et", digit(1)}
	case n < 70:
		return []string{digit(n - n%10), digit(n % 10)}
	case n == 71:
		return []string{digit(60), "digits/et", digit(11)}
	case n < 80:
		return []string{digit(60), digit(n - 60)}
	case n < 100:
		return []string{digit(80), digit(n - 80)}
	case n < 200:
		return slices.Concat([]string{hundred}, french(n%100))
	}
	return slices.Concat([]string{digit(n / 100), hundred}, french(n%100))
}

// italian: ventuno and ventotto are one word, venti | due are two; cento without a one before it.
func italian(n int) []string {
	switch {
	case n == 0:
		return nil
	case n < 20, n < 100 && slices.Contains([]int{0, 1, 8}, n%10):
		return []string{digit(n)}
	case n < 100:
		return []string{digit(n - n%10), digit(n % 10)}
	case n < 200:
		return slices.Concat([]string{hundred}, italian(n%100))
	}
	return slices.Concat([]string{digit(n / 100), hundred}, italian(n%100))
}

// russian: each hundred has its word.
func russian(n int) []string {
	switch {
	case n == 0:
		return nil
	case n < 20 || n < 100 && n%10 == 0:
		return []string{digit(n)}
	case n < 100:
		return []string{digit(n - n%10), digit(n % 10)}
	}
	return slices.Concat([]string{digit(n - n%100)}, russian(n%100))
}
