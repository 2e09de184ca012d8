"""The vocabularies of the built-in passages. Every word stands in one vocabulary only, except numbers.

Words that follow "a" begin with a consonant's sound, so that no sentence needs to choose between "a" and "an".
"""
from __future__ import annotations

WOMEN = """Agnes Alina Amara Beatriz Bianca Camille Carla Chiara Daria Edith Elif Fatima Freya Greta Hanna Hilda Ines
Ingrid Jolana Judith Karin Katya Leila Linnea Lucia Magda Marta Mireille Nadia Noemi Olga Petra Priya Renata Rosalind
Sabine Selma Tamar Tilda Ursula Valentina Vera Wanda Yasmin Zofia""".split()
MEN = """Adrian Aleksander Anton Bastian Bruno Casper Cyril Dario Desmond Edgar Emil Fabian Felix Gustav Hamid Hector
Henrik Igor Ivan Jasper Joaquin Julian Karel Kenji Laszlo Leander Lorenzo Magnus Marcel Mateo Milan Nikolai Oscar
Otto Pavel Quentin Rafael Ravi Sander Silas Stefan Tobias Tomas Ulrich Viktor Walter Yusuf""".split()
FIRST_NAMES = WOMEN + MEN
SURNAMES = """Abramson Almeida Andersen Bakker Barlow Bellini Bergstrom Brandt Calloway Castellan Cervantes Corbett
Dalgaard Delacroix Dimitrov Dunmore Eriksen Fairbank Ferrante Fitzroy Galloway Grabowski Halvorsen Hargreave Hartmann
Haugland Ivanova Jablonski Jorgensen Kaplan Keller Kowalski Lachance Langley Lindqvist Lombardi Madsen Marchetti
Mendoza Molnar Moreau Nakamura Novotny Okafor Olsson Pemberton Petrov Quintero Radford Rasmussen Ribeiro Sandoval
Schreiber Sorensen Takeda Thornton Ulvaeus Vasquez Verhoeven Wakefield Whitlock Yamada Zelinka Zimmer""".split()
TOWNS = """Aarhus Antwerp Avignon Basel Bergen Bilbao Bologna Braga Bruges Cadiz Cardiff Cork Cracow Dijon Dresden
Dublin Faro Galway Gdansk Geneva Genoa Ghent Girona Granada Grenoble Hamburg Helsinki Kiel Leeds Leiden Leipzig Lille
Limerick Linz Lisbon Ljubljana Lucerne Lund Malmo Marseille Nantes Naples Odense Oporto Orleans Ostend Oulu Padua
Parma Perugia Plymouth Prague Ravenna Riga Rostock Rouen Salzburg Seville Siena Split Stavanger Tallinn Tampere
Toulouse Trieste Trondheim Turin Turku Uppsala Utrecht Valencia Verona Vilnius Warsaw York Zagreb Zurich""".split()
PROFESSIONS = """baker beekeeper blacksmith bookbinder botanist butcher carpenter cartographer chemist clockmaker
cobbler dentist doctor farmer florist gardener geologist glassblower goldsmith journalist judge lawyer librarian
locksmith mason mechanic midwife miller nurse painter pharmacist photographer pilot plumber potter printer saddler
sculptor shepherd stonecutter surgeon surveyor tailor teacher tinsmith translator veterinarian weaver welder""".split()
INSTRUMENTS = """accordion banjo bassoon cello clarinet cornet flute guitar harmonica harp harpsichord lute mandolin
marimba oboe organ piano piccolo recorder saxophone trombone trumpet tuba viola violin xylophone zither""".split()
PETS = """canary cat dog donkey ferret goat goose hamster hedgehog lizard parrot pony rabbit raven snake spaniel
terrier tortoise""".split()
SHIP_FIRST = """Amber Blue Bold Brave Bright Crimson Distant Eastern Emerald Faithful Gentle Golden Grey Happy Hidden
Humble Jolly Lonely Lucky Merry Midnight Morning Noble Northern Pale Patient Proud Quiet Rapid Royal Scarlet Silent
Silver Southern Steady Swift Velvet Western White Winter""".split()
SHIP_SECOND = """Albatross Anchor Arrow Comet Compass Cormorant Crown Curlew Dolphin Dragon Eagle Falcon Fox Gannet
Gull Harvest Heron Horizon Kestrel Kingfisher Lantern Lark Lion Mermaid Monarch Osprey Pelican Petrel Pilgrim Puffin
Raindrop Sparrow Spirit Star Stork Swallow Tern Tide Trader Voyager""".split()
GOODS = """almonds barley bricks candles carpets cement cheese cocoa coffee copper corn cotton dates figs flour
furniture glassware grain honey jute lemons linen marble molasses olives oranges paper pepper porcelain potatoes rice
rope salt silk soap sugar tea timber tobacco wheat wine wool""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April June July August September October November December".split()
TOPICS = """archery astronomy basketry beekeeping calligraphy carpentry chess cooking crochet drawing embroidery
fencing gardening geology jewellery juggling knitting meditation mosaics navigation origami painting photography
poetry pottery puppetry sailing sculpture sewing singing storytelling swimming typography weaving yoga""".split()
ROOMS = """ballroom barn basement boathouse cafeteria chapel church garage greenhouse gymnasium kitchen
laboratory library lounge pavilion studio theatre workshop""".split()
LANDMARKS = """Arcade Archive Barracks Bridge College Courthouse Exchange Fountain Gallery Gatehouse Granary Hall
Hospital Hotel Lighthouse Mansion Market Mill Observatory Orphanage Palace Pier Station Tower Villa Windmill""".split()
MATERIALS = """basalt bronze clay concrete flint glass granite limestone marlstone pine sandstone slate steel
terracotta wood zinc""".split()
COLOURS = """black blue brown crimson cream green grey lilac maroon pink purple red scarlet turquoise
violet white yellow""".split()
GOALS = """canyon cave cliff crater delta desert fjord geyser glacier gorge island lagoon lake marsh meadow plateau
rainforest reef ridge spring swamp tundra valley volcano waterfall""".split()
PACK_ANIMALS = "buffaloes camels donkeys horses huskies llamas mules oxen ponies reindeer yaks".split()
FINDS = """bell bone bracelet brooch button coin compass crown cup dagger feather fossil
helmet jawbone jug key knife lamp mask meteorite mirror necklace ring shell shield skeleton spoon statue sundial sword
telescope tooth vase""".split()
FLOWERS = """asters begonias carnations daffodils dahlias daisies freesias gardenias geraniums hyacinths irises
jasmine lavender lilies lupins marigolds orchids pansies peonies poppies primroses roses snowdrops sunflowers tulips
violets zinnias""".split()
DISHES = """chowder curry dumplings goulash lasagne noodles pancakes pasta porridge ravioli risotto salad soup
stew""".split()
VEGETABLES = """artichokes asparagus aubergines beans beetroot broccoli cabbage carrots cauliflower celery chickpeas
courgettes cucumbers fennel kale leeks lentils lettuce mushrooms onions parsnips peas peppers pumpkin radishes spinach
tomatoes turnips""".split()
SPICES = """aniseed basil caraway cardamom chilli cinnamon cloves coriander cumin dill ginger mint mustard nutmeg
oregano paprika parsley rosemary saffron sage tarragon thyme turmeric vanilla""".split()
DRINKS = "beer buttermilk champagne cider cocoa coffee juice lemonade milk punch rum sherry tea water wine".split()
BIRTH_YEARS = [str(year) for year in range(1885, 1976)]
BUILT_YEARS = [str(year) for year in range(1702, 1899)]
FOUND_YEARS = [str(year) for year in range(1901, 2020)]
LENGTHS = [str(days) for days in range(13, 98)]
FEES = [str(pounds) for pounds in range(21, 190)]
CROWDS = [str(people) for people in range(110, 990, 3)]
MINUTES = [str(minutes) for minutes in range(16, 94)]
