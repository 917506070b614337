package main

import (
	"fmt"
	"maps"
	"strings"
)

// set is what is said in one language: Asterisk's names, words of our own.
type set struct {
	language string
	voice    string // of espeak-ng
	prompts  map[string]string
}

func sets() []set {
	return []set{english(), german(), spanish(), french(), italian(), russian()}
}

// promptNames are the sentences, in the order that the languages below give them.
var promptNames = []string{
	"conf-getpin", "conf-invalidpin", "conf-onlyperson", "conf-onlyone", "conf-thereare", "conf-otherinparty", "conf-muted", "conf-unmuted",
	"conf-waitforleader", "conf-hasjoin", "conf-hasleft", "conf-full", "please-try-call-later", "vm-goodbye",
}

// language puts a set together: sentences by order, numbers from words separated by spaces, beginning at zero.
func language(name, voice, sentences, numbers string, others map[string]string) set {
	s := set{name, voice, map[string]string{}}
	lines := strings.Split(strings.TrimSpace(sentences), "\n")
	if len(lines) != len(promptNames) {
		panic(fmt.Sprintf("%s has %d sentences, not %d", name, len(lines), len(promptNames)))
	}
	for i, line := range lines {
		s.prompts[promptNames[i]] = strings.TrimSpace(line)
	}
	for i, word := range strings.Fields(numbers) {
		s.prompts[fmt.Sprintf("digits/%d", i)] = strings.ReplaceAll(word, "_", " ")
	}
	maps.Copy(s.prompts, others)
	return s
}

// tens gives the words for 30, 40 … 90 (or from another number on) their names.
func tens(first int, words string) map[string]string {
	m := map[string]string{}
	for i, word := range strings.Fields(words) {
		m[fmt.Sprintf("digits/%d", first+10*i)] = word
	}
	return m
}

func with(parts ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, m := range parts {
		maps.Copy(all, m)
	}
	return all
}

func english() set {
	return language("en", "en-us", `
		Please enter the pin, and then press hash.
		This pin is not valid.
		You are the only one in this conference.
		One other person is in this conference.
		There are
		other people in this conference.
		You are muted.
		You can be heard again.
		Please wait. Somebody has to let you in.
		has come in.
		has left.
		This conference is full.
		Please try again later.
		Goodbye.`,
		"zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty",
		with(tens(30, "thirty forty fifty sixty seventy eighty ninety"), map[string]string{"digits/hundred": "hundred"}))
}

func german() set {
	and := map[string]string{}
	for i, word := range strings.Fields("ein zwei drei vier fünf sechs sieben acht neun") {
		and[fmt.Sprintf("digits/%d-and", i+1)] = word + "und"
	}
	return language("de", "de", `
		Bitte geben Sie die PIN ein, und dann die Raute-Taste.
		Diese PIN ist nicht gültig.
		Sie sind allein in dieser Konferenz.
		Außer Ihnen ist eine Person in dieser Konferenz.
		Außer Ihnen sind
		Personen in dieser Konferenz.
		Sie sind stumm geschaltet.
		Sie sind wieder zu hören.
		Bitte warten Sie, bis jemand Sie einlässt.
		ist dazugekommen.
		hat die Konferenz verlassen.
		Diese Konferenz ist voll.
		Bitte versuchen Sie es später noch einmal.
		Auf Wiederhören.`,
		"null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn zwanzig",
		with(and, tens(30, "dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"), map[string]string{
			"digits/hundred": "hundert", "digits/1N": "ein", "digits/1F": "eine",
		}))
}

func spanish() set {
	hundreds := map[string]string{"digits/100": "cien", "digits/100-and": "ciento", "digits/hundred": "cien", "digits/and": "y"}
	for i, word := range strings.Fields("doscientos trescientos cuatrocientos quinientos seiscientos setecientos ochocientos novecientos") {
		hundreds[fmt.Sprintf("digits/%d00", i+2)] = word
	}
	return language("es", "es", `
		Por favor, introduzca el pin y pulse la tecla almohadilla.
		Este pin no es válido.
		Usted es la única persona en esta conferencia.
		Hay otra persona en esta conferencia.
		Hay
		personas más en esta conferencia.
		Está usted en silencio.
		Se le oye de nuevo.
		Por favor, espere a que alguien le deje entrar.
		ha entrado.
		ha salido.
		Esta conferencia está llena.
		Por favor, inténtelo más tarde.
		Adiós.`,
		`cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete dieciocho diecinueve
		veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete veintiocho veintinueve treinta`,
		with(tens(40, "cuarenta cincuenta sesenta setenta ochenta noventa"), hundreds))
}

func french() set {
	return language("fr", "fr", `
		Veuillez saisir le code, puis la touche dièse.
		Ce code n'est pas valable.
		Vous êtes seul dans cette conférence.
		Il y a une autre personne dans cette conférence.
		Il y a
		autres personnes dans cette conférence.
		Votre micro est coupé.
		On vous entend de nouveau.
		Veuillez patienter. Quelqu'un doit vous laisser entrer.
		est entré.
		est parti.
		Cette conférence est complète.
		Veuillez réessayer plus tard.
		Au revoir.`,
		"zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept dix-huit dix-neuf vingt",
		with(tens(30, "trente quarante cinquante soixante"), map[string]string{
			"digits/80": "quatre-vingt", "digits/et": "et", "digits/hundred": "cent",
		}))
}

func italian() set {
	joined := map[string]string{"digits/hundred": "cento"}
	for i, word := range strings.Fields("vent trent quarant cinquant sessant settant ottant novant") {
		joined[fmt.Sprintf("digits/%d1", i+2)] = word + "uno"
		joined[fmt.Sprintf("digits/%d8", i+2)] = word + "otto"
	}
	return language("it", "it", `
		Prego, inserire il pin e premere cancelletto.
		Questo pin non è valido.
		Lei è l'unica persona in questa conferenza.
		C'è un'altra persona in questa conferenza.
		Ci sono
		altre persone in questa conferenza.
		Il microfono è spento.
		Il microfono è di nuovo acceso.
		Prego, attendere che qualcuno la faccia entrare.
		è entrato.
		è uscito.
		Questa conferenza è piena.
		Prego, riprovare più tardi.
		Arrivederci.`,
		"zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici diciassette diciotto diciannove venti",
		with(tens(30, "trenta quaranta cinquanta sessanta settanta ottanta novanta"), joined))
}

func russian() set {
	hundreds := map[string]string{"digits/hundred": "сто"}
	for i, word := range strings.Fields("сто двести триста четыреста пятьсот шестьсот семьсот восемьсот девятьсот") {
		hundreds[fmt.Sprintf("digits/%d00", i+1)] = word
	}
	return language("ru", "ru", `
		Пожалуйста, введите пин-код и нажмите решётку.
		Неверный пин-код.
		Вы один в этой конференции.
		В этой конференции ещё один участник.
		В этой конференции ещё
		участников.
		Ваш микрофон выключен.
		Ваш микрофон включён.
		Пожалуйста, подождите, пока вас впустят.
		вошёл.
		вышел.
		Эта конференция заполнена.
		Пожалуйста, перезвоните позже.
		До свидания.`,
		`ноль один два три четыре пять шесть семь восемь девять десять одиннадцать двенадцать тринадцать четырнадцать пятнадцать
		шестнадцать семнадцать восемнадцать девятнадцать двадцать`,
		with(tens(30, "тридцать сорок пятьдесят шестьдесят семьдесят восемьдесят девяносто"), hundreds))
}
