"""What precisions are judged on where the user has given no texts: our own, short and long, of twenty subjects.

Each line is a text, and those of one block speak of the same thing, so that every text has near neighbours and far
ones. The last text of a block is all of its lines together, as a passage among sentences.
"""

BLOCKS = """\
How do I bake bread without yeast?
Mix flour, baking soda, salt and buttermilk, shape a loaf, cut a cross into it and bake it for forty minutes.
sourdough starter smells sour
A dough that has risen overnight in the fridge tastes better than one that was hurried in a warm kitchen.
Knead until the dough no longer sticks to the bowl.
The crust stays crisp if the loaf cools on a rack and not in a bag.

My train to the coast is two hours late, can I get my money back?
Passengers whose train arrives more than sixty minutes late may claim a quarter of the fare.
cheap night train tickets
The sleeper leaves at ten in the evening, stops at the border for passports, and is at the sea by breakfast.
Seat reservations are compulsory on the fast line and free on all others.
The station closed for repairs, so buses replace the trains between the two towns until spring.

What is the capital of Mongolia?
Ulaanbaatar lies in a valley at 1,300 metres and is the coldest capital in the world.
Nomads move their felt tents four times a year to follow the grass.
Gobi desert climate
The steppe has hot summers, long winters and almost no rain.
Horses outnumber people in several provinces.

The function returns a list sorted in place, which surprises most beginners.
How to reverse a string in Python
def mean(values): return sum(values) / len(values)
TypeError: 'NoneType' object is not iterable
Write a test that fails before you fix the bug, and keep it afterwards.
for (int i = 0; i < n; ++i) { total += weights[i] * inputs[i]; }

SELECT name, COUNT(*) FROM orders GROUP BY name ORDER BY 2 DESC LIMIT 10;
The query is slow because the table has no index on the column that it filters by.
database migration failed halfway
A transaction either happens as a whole or leaves no trace at all.
Back up before you upgrade, and try to restore from the backup at least once.
Replicas lag behind the primary by a few hundred milliseconds under load.

The patient reports chest pain that gets worse with exercise and goes away at rest.
side effects of ibuprofen
Take one tablet twice a day with food, and do not drink alcohol during the treatment.
High blood pressure often has no symptoms until it has done damage.
Children under two years should be seen by a doctor if a fever lasts longer than a day.
The trial compared the new vaccine with a placebo in nine thousand volunteers.

Shares of the car maker fell by eight percent after it had warned of lower profits.
The central bank raised interest rates for the third time this year to slow inflation.
quarterly earnings report
Investors moved their money from technology stocks into government bonds.
The merger would create the second largest airline of the continent, and regulators are not amused.
Unemployment is at its lowest level since records began.

The tenant shall pay the rent in advance on the first working day of every month.
Can my landlord keep the deposit?
Either party may terminate this agreement with three months' notice in writing.
The court held that the contract was void because one of the parties had been threatened.
power of attorney form
Nothing in these terms limits liability for injury caused by negligence.

The keeper saved two penalties, and the visitors won the cup for the first time in forty years.
marathon training plan
She broke the world record over 1,500 metres by almost a second.
The match was abandoned at half time when the floodlights failed.
Offside is judged at the moment when the ball is played, not when it is received.
He retired from tennis with a shoulder that would no longer serve.

Water boils at a lower temperature on a mountain because the air presses less on it.
speed of light in glass
Electrons that pass through two slits form a pattern of stripes even when they come one at a time.
A black hole of the mass of the Sun would be three kilometres in radius.
Why is the sky blue?
The telescope found water vapour in the atmosphere of a planet 120 light years away.

The bees leave the hive when the temperature rises above ten degrees.
when to prune apple trees
Tomatoes want sun, support and the same amount of water every day.
Slugs ate all of the lettuce in a single night.
Compost is ready when it smells of forest soil and no longer of kitchen.
Plant garlic in autumn, and harvest it when half of the leaves have turned yellow.

The old man had fished alone for so long that he talked to the gulls as if they were neighbours.
Once there was a king who had three daughters and a kingdom too small to share.
It rained on the day of the funeral, and nobody had thought of umbrellas.
a novel about two sisters
"You are late," said the fox, "and you have brought the wrong key."
The letter lay unopened on the table for a week, and then she burned it.

The orchestra plays the second movement much slower than the composer had asked for.
guitar chords for beginners
The festival has four stages, and every band that matters plays on the smallest.
Her new album was recorded in a church, in three nights, on a single microphone.
He painted the same bridge forty times, in fog, in snow and at noon.
The museum is free on the first Sunday of the month.

My package says delivered, but it is not here.
You can return unworn shoes within thirty days for a full refund.
cancel my subscription
The battery lasted two weeks and then died; very disappointed, would not buy again.
Excellent headphones for the price, comfortable, good bass, and the case is sturdy.
We are sorry for the inconvenience and have sent a replacement today.

The city council voted to close the centre to cars on weekends.
bicycle lane rules
Rents have doubled in ten years while wages rose by a fifth.
A new tram line will connect the university with the harbour in 2031.
Residents complain about the noise of deliveries before six in the morning.
Trees along a street lower its temperature in summer by several degrees.

The election was decided by fewer than two hundred votes.
Parliament rejected the budget, and the government has to resign.
ambassador recalled
The two countries signed a treaty on fishing rights after eleven years of talks.
Turnout was highest among voters over seventy.
The minister denied that she had known of the report.

Der Zug nach Hamburg fährt heute von Gleis sieben.
Wie lange ist das Rezept für die Tabletten gültig?
Die Mieter haben gegen die Erhöhung geklagt und Recht bekommen.
Im Herbst werden die Äpfel gepresst und der Saft in Flaschen gefüllt.
Rechnung herunterladen
Das Programm stürzt ab, sobald eine zweite Datei geöffnet wird.

Le restaurant est fermé le lundi et pendant tout le mois d'août.
Quels documents faut-il pour renouveler un passeport ?
Il a neigé toute la nuit, et les routes du col sont coupées.
réserver une chambre
La pièce raconte l'histoire d'un médecin qui ne sait pas mentir.
Les prix du logement baissent pour la première fois depuis dix ans.

¿Dónde puedo cambiar dinero cerca de la estación?
La biblioteca abre de lunes a sábado hasta las nueve de la noche.
receta de tortilla de patatas
El equipo ganó la liga a falta de tres jornadas.
No funciona la impresora después de la última actualización.
Los vecinos plantaron cien árboles en el parque.

今天天气很好，我们去公园散步吧。
这家餐厅的面条又便宜又好吃。
如何申请信用卡？
地铁二号线因故障暂停运行，请乘客改乘公交车。
他的新书讲述了一个小镇医生的故事。
手机电池用了两年，充电越来越慢。
"""


def list_sample_texts() -> list[str]:
    blocks = [block.splitlines() for block in BLOCKS.strip().split("\n\n")]
    return [text for lines in blocks for text in (*lines, " ".join(lines))]
